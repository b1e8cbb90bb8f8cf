"""What the screen shows of a running run: one picture for terminals, one line for everything else.

Pure functions of a ProgressState; who prints them, and when, is progress.py's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from distill_engine.metrics.named import in_one_line
from distill_engine.telemetry.metrics import describe, of_teacher, terms

_FRAME_LINES = 10
_RATES = {"lr": "train/lr", "tokens/s": "train/tokens_per_second"}
_FINAL_PHASES = ("finished", "stopped", "failed")
_PHASE_STYLE = {"finished": "bold green", "stopped": "bold yellow", "failed": "bold red"}


@dataclass
class ProgressState:
    """What is known of the run; values are metric name -> number, empty before the first record.

    `metric` is the deciding validation metric without `valid/`; `total_steps` is None without a limit.
    """

    title: str
    metric: str = "ppl"
    total_steps: int | None = None
    phase: str = "starting"
    step: int = 0
    until_validation: str | None = None
    eta_seconds: float | None = None
    train: Mapping[str, float] = field(default_factory=dict)
    valid: Mapping[str, float] = field(default_factory=dict)
    best: float | None = None


def number(value: float) -> str:
    """Four significant digits, as short as they get: 4.812, 12.35, 1.2e-05, 31k."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.1e}"
    return f"{value / 1000:.1f}k" if size >= 10_000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Clock time: 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def about(seconds: float) -> str:
    """A duration for estimates: 40 s, 3 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def quantity(name: str, value: float) -> str:
    """The value of a registered metric as people read it: shares in per cent, the rest as `number`."""
    return f"{100 * value:.1f} %" if describe(name).unit == "share" else number(value)


def _label(metric: str) -> str:
    return metric.replace("_", " ")


def _steps(state: ProgressState) -> str:
    return f"step {state.step}" if state.total_steps is None else f"step {state.step}/{state.total_steps}"


def train_line(state: ProgressState, seconds: float) -> str:
    """One compact line of the last training record: steps, total, raw terms, ppl, rate, time left."""
    values = state.train
    parts = [f"{duration(seconds)}  {_steps(state)}"]
    parts += _named(values, {"loss": "train/total"})
    parts += _named(values, {term: f"train/term/{term}/raw" for term in terms()})
    parts += _named(values, {"ppl": "train/ppl", **_RATES})
    if state.eta_seconds is not None:
        parts.append(f"left {about(state.eta_seconds)}")
    return "  ".join(parts)


def valid_line(state: ProgressState) -> str:
    """One line of the last validation: the deciding metric and its best first, then what else is known."""
    decisive = f"valid/{state.metric}"
    parts = [_steps(state), *_named(state.valid, {f"valid {_label(state.metric)}": decisive})]
    if state.best is not None:
        new = state.valid.get(decisive) == state.best
        parts.append("new best" if new else f"best {quantity(decisive, state.best)}")
    others = {label: name for label, name in in_one_line().items() if name != decisive}
    parts += _named(state.valid, others)
    if "valid/seconds" in state.valid:
        parts.append(about(state.valid["valid/seconds"]))
    return "  ".join(parts)


def _named(values: Mapping[str, float], names: Mapping[str, str]) -> Iterable[str]:
    return [f"{label} {quantity(name, values[name])}" for label, name in names.items() if name in values]


def picture(state: ProgressState, elapsed_seconds: float, spinner: Spinner, height: int) -> RenderableType:
    """The live display, for a terminal of `height` lines; the table of terms needs about ten of them."""
    rows: list[RenderableType] = [_headline(state, elapsed_seconds, spinner)]
    if state.total_steps is not None:
        rows.append(ProgressBar(total=state.total_steps, completed=state.step, complete_style="cyan"))
    if state.train or state.valid:
        rows += ["", _numbers(state)]
    shown = [term for term in terms() if f"train/term/{term}/raw" in state.train]
    if shown and height >= _FRAME_LINES + len(shown):
        rows += ["", _terms(state.train, shown)]
    title = Text(f" {state.title} ", style="bold")
    return Panel(Group(*rows), title=title, title_align="left", border_style="dim", padding=(0, 1))


def _headline(state: ProgressState, elapsed_seconds: float, spinner: Spinner) -> Table:
    style = _PHASE_STYLE.get(state.phase, "bold cyan")
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(width=1)
    table.add_column(no_wrap=True, ratio=1)
    table.add_column(no_wrap=True, justify="right")
    facts = [_steps(state).replace("/", " of "), duration(elapsed_seconds)]
    if state.until_validation and state.phase not in _FINAL_PHASES:
        facts.append(f"validation in {state.until_validation}")
    left = Text.assemble((state.phase, style), *((f" · {fact}", "dim") for fact in facts))
    estimate = state.eta_seconds if state.phase not in _FINAL_PHASES else None
    right = f"{about(estimate)} left" if estimate is not None else ""
    table.add_row(Text("") if state.phase in _FINAL_PHASES else spinner, left, Text(right, style="dim"))
    return table


def _numbers(state: ProgressState) -> Table:
    values = {**state.train, **state.valid}
    decisive = f"valid/{state.metric}"
    shown = {"loss": "train/total", "train ppl": "train/ppl", f"valid {_label(state.metric)}": decisive}
    cells = [(label, quantity(name, values[name]) if name in values else "-") for label, name in shown.items()]
    cells.append(("best", "-" if state.best is None else quantity(decisive, state.best)))
    teachers = of_teacher(decisive) if of_teacher(decisive) in values else of_teacher("valid/ppl")
    if teachers in values:
        cells.append(("teacher's", quantity(teachers, values[teachers])))
    cells += [(label, number(values[name])) for label, name in _RATES.items() if name in values]
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in cells:
        table.add_column(no_wrap=True, ratio=1)
    table.add_row(*(Text(label, style="dim") for label, _ in cells))
    table.add_row(*(Text(value, style="bold") for _, value in cells))
    return table


def _terms(values: Mapping[str, float], terms: list[str]) -> Table:
    weighted = {term: values.get(f"train/term/{term}/weighted", math.nan) for term in terms}
    total = sum(value for value in weighted.values() if math.isfinite(value))
    table = Table(box=None, expand=True, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("term", no_wrap=True)
    table.add_column("raw", justify="right", no_wrap=True, min_width=8)
    table.add_column("weighted", justify="right", no_wrap=True)
    table.add_column("share of the loss", ratio=1, no_wrap=True)
    table.add_column("", justify="right", no_wrap=True, min_width=4)
    for term, value in weighted.items():
        share = value / total if total > 0 and math.isfinite(value) else 0.0
        bar = ProgressBar(total=1.0, completed=share, complete_style="blue", finished_style="blue")
        table.add_row(
            _label(term), number(values[f"train/term/{term}/raw"]), number(value), bar, f"{100 * share:.0f} %"
        )
    return table
