"""What `distill watch` shows of a run: the picture of training itself, trends, and the last messages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from distill_engine.metrics.named import better, in_one_line
from distill_engine.reports.history import RunHistory
from distill_engine.telemetry.metrics import describe, terms
from distill_engine.telemetry.progress_view import ProgressState, picture, quantity
from distill_engine.telemetry.sinks import Record

_SPEED = "train/tokens_per_second"
_BARS = "▁▂▃▄▅▆▇█"
_TREND_WIDTH = 32
_MESSAGES = 3
_SAMPLES, _SAMPLES_FRAME = 4, 4  # most lines of sample replies; borders, header, and a line of distance
_FRAME_LINES = 6  # of a panel of trends: borders, header, and room for the prompt
_PICTURE_LINES = 8


def watch_view(history: RunHistory, spinner: Spinner, height: int) -> RenderableType:
    """The whole picture for a terminal of `height` lines; what does not fit is left out from the bottom up."""
    state = progress_state(history)
    parts: list[RenderableType] = [picture(state, history.seconds, spinner, height)]
    shown = [term for term in terms() if f"train/term/{term}/raw" in state.train]
    room = height - _PICTURE_LINES - len(shown) - _FRAME_LINES
    if history.missing:
        room -= 1
        parts.append(Text(f"records missing in metrics.jsonl: {history.missing}", style="yellow"))
    names = trend_names(history)[: max(0, room)]
    if names:
        parts.append(_trends(history, names))
    messages = [record for record in history.records if record.kind == "event" and record.text][-_MESSAGES:]
    left = room - len(names) - len(messages)
    samples = [record for record in history.records if record.kind == "samples" and record.rows]
    if samples and left > _SAMPLES_FRAME:
        parts.append(_samples(samples[-1], min(_SAMPLES, left - _SAMPLES_FRAME)))
    if left > 0:
        parts += [Text(f"step {record.step}: {record.text}", style="dim") for record in messages]
    return Group(*parts)


def progress_state(history: RunHistory) -> ProgressState:
    """The run as training's own display knows it, from its records."""
    left = None
    if history.running and history.max_steps is not None and history.step > 0:
        left = (history.max_steps - history.step) * history.seconds / history.step
    return ProgressState(
        title=history.name,
        metric=history.metric,
        total_steps=history.max_steps,
        phase=history.phase,
        step=history.step,
        eta_seconds=left,
        train=history.last("train"),
        valid=history.last("valid"),
        best=history.best(),
    )


def trend_names(history: RunHistory) -> list[str]:
    """Recorded metrics worth a line, the deciding one first."""
    recorded = set(history.names())
    judging = (name for name in in_one_line().values() if better(name) != "neither")
    wanted = (f"valid/{history.metric}", "train/total", "train/ppl", *judging, "train/grad_norm", _SPEED)
    return [name for name in dict.fromkeys(wanted) if name in recorded]


def sparkline(values: Sequence[float], width: int, log: bool) -> str:
    """Bars from the smallest to the largest value, the mean of each of `width` stretches; `!` where one is not
    finite. log: by magnitude, if all are positive."""
    stretches = (
        [values[len(values) * i // width : len(values) * (i + 1) // width] for i in range(width)]
        if len(values) > width
        else [[value] for value in values]
    )
    means = [sum(stretch) / len(stretch) for stretch in stretches]
    finite = [value for value in means if math.isfinite(value)]
    if not finite:
        return "!" * len(means)
    scale = math.log if log and min(finite) > 0 else float
    low, high = scale(min(finite)), scale(max(finite))

    def bar(value: float) -> str:
        if not math.isfinite(value):
            return "!"
        share = (scale(value) - low) / (high - low) if high > low else 0.0
        return _BARS[min(len(_BARS) - 1, int(share * len(_BARS)))]

    return "".join(bar(value) for value in means)


def _samples(record: Record, most: int) -> Panel:
    """A line per prompt: what was said last, the teacher's reply if it is known, and the student's."""
    columns = [name for name in ("teacher", "student") if name in record.rows[0]]
    table = Table(box=None, expand=True, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column(f"sample replies, step {record.step}", no_wrap=True, ratio=1, style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True, ratio=1)
    for row in record.rows[:most]:
        asked = next(iter(reversed(row.get("context", "").splitlines())), "")
        table.add_row(Text(asked), *(Text(" ".join(row[name].split())) for name in columns))
    return Panel(table, border_style="dim", padding=(0, 1))


def _trends(history: RunHistory, names: Sequence[str]) -> Panel:
    table = Table(box=None, expand=True, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("trend", no_wrap=True)
    table.add_column("first", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, ratio=1)
    table.add_column("last", justify="right", no_wrap=True)
    table.add_column("best", justify="right", no_wrap=True)
    for name in names:
        values = history.series(name)[1]
        better = describe(name).better
        finite = [value for value in values if math.isfinite(value)]
        best = "-"
        if finite and better != "neither":
            best = quantity(name, min(finite) if better == "lower" else max(finite))
        bars = Text(sparkline(values, _TREND_WIDTH, log=better == "lower"), style="cyan")
        table.add_row(name, quantity(name, values[0]), bars, quantity(name, values[-1]), best)
    return Panel(table, border_style="dim", padding=(0, 1))
