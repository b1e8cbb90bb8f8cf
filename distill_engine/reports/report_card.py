"""`distill report-card`: was the student worth it? One comparison as HTML, as Markdown, and for a model card.

Every number comes from one evaluation and one interleaved latency run; nothing is taken from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill_engine.evaluate.backend_rows import BackendRow, backend_table
from distill_engine.evaluate.latency_rows import LatencyRow
from distill_engine.evaluate.run import Sample
from distill_engine.metrics.named import by_shown_name, is_share
from distill_engine.reports import page, plots

BEGIN, END = "<!-- report card: begin -->", "<!-- report card: end -->"

_HOW_TO_READ = "Left is faster, down is better. Bars are the 20th to the 80th percentile over the rounds."
_SAMPLES = 8


@dataclass(frozen=True)
class ReportCard:
    """One comparison; the first model is the teacher.

    names    short name of each model, in order
    quality  values per short name (evaluation's names, and `parameters`)
    latency  rows per short name; the first of each is the headline: fixed tokens, greedy, one at a time
    how      facts about how it was measured, as label -> text
    backends the first student in several programs; empty: not asked for
    judged   text metrics by which such data is judged
    """

    names: Sequence[str]
    quality: Mapping[str, Mapping[str, float]]
    latency: Mapping[str, Sequence[LatencyRow]]
    samples: Sequence[Sample]
    how: Mapping[str, str]
    machine: Mapping[str, Any] = field(default_factory=dict)
    backends: Sequence[BackendRow] = ()
    judged: Sequence[str] = ()

    @property
    def teacher(self) -> str:
        """The teacher's short name."""
        return self.names[0]

    def milliseconds(self, name: str) -> float:
        """Headline latency: median milliseconds per reply."""
        return self.latency[name][0].wait_ms_p50

    def shown(self, dataset: str = "") -> dict[str, str]:
        """Values of the models, of one dataset (`NAME/`) or of all, to their headers."""
        metrics = by_shown_name().items()
        headers = {name: one.short or name for name, one in metrics if one.short or name in self.judged}
        headers["reply_tokens"] = "tokens/reply"
        there = {value for values in self.quality.values() for value in values}
        return {name: header for name, header in headers.items() if dataset + name in there}

    def faster(self, name: str) -> float:
        """How many times the teacher's speed."""
        return self.milliseconds(self.teacher) / self.milliseconds(name)


def card_html(card: ReportCard) -> str:
    """The whole page."""
    header, rows = overview(card)
    speed_header, speed_rows = speeds(card)
    body = [
        page.heading("Report card", 1),
        page.paragraph(headline(card), quiet=True),
        page.plots([page.plot(frontier_svg(card), _HOW_TO_READ, wide=True)]),
        page.heading("Overview"),
        page.table(header, rows),
        page.heading("Quality by dataset"),
        *_dataset_tables(card),
        page.heading("Latency"),
        page.table(speed_header, speed_rows),
        *([page.heading("Backends"), page.table(*backends(card), numbers=range(2, 99))] if card.backends else []),
        page.heading("Sample replies"),
        page.table(["said before", "right answer", *card.names], sample_rows(card), numbers=False),
        page.heading("How it was made"),
        page.table(["", ""], [list(pair) for pair in card.how.items()], numbers=False),
        page.folded("machine", json.dumps(dict(card.machine), indent=2)),
    ]
    return page.page("Report card", body)


def card_markdown(card: ReportCard, plot_file: str) -> str:
    """The same as Markdown; `plot_file` is the frontier's file name beside it."""
    facts = "\n".join(f"- {label}: {text}" for label, text in card.how.items())
    return "\n".join(
        [
            "# Report card\n",
            f"{headline(card)}\n",
            f"![speed and quality]({plot_file})\n",
            _markdown_table(*overview(card)),
            "## Latency\n",
            _markdown_table(*speeds(card)),
            *(["## Backends\n", _markdown_table(*backends(card))] if card.backends else []),
            "## Sample replies\n",
            _markdown_table(["said before", "right answer", *card.names], sample_rows(card)),
            "## How it was made\n",
            facts,
            f"\n```json\n{json.dumps(dict(card.machine), indent=2)}\n```\n",
        ]
    )


def model_card_section(card: ReportCard) -> str:
    """What goes into a student's README.md: between two markers, so that a newer one replaces it."""
    facts = "\n".join(f"- {label}: {text}" for label, text in card.how.items())
    table = _markdown_table(*overview(card))
    samples = _markdown_table(["said before", "right answer", *card.names], sample_rows(card)[:3])
    programs = f"{_markdown_table(*backends(card))}\n" if card.backends else ""
    return f"{BEGIN}\n## Report card\n\n{headline(card)}\n\n{table}\n{programs}{samples}\n{facts}\n{END}\n"


def with_section(readme: str, section: str) -> str:
    """A model card's text with the section in it: in place of an older one, else at the end."""
    start, stop = readme.find(BEGIN), readme.find(END)
    if start < 0 or stop < start:
        return f"{readme.rstrip()}\n\n{section}"
    rest = readme[stop + len(END) :].removeprefix("\n")
    return f"{readme[:start]}{section}{rest}"


def headline(card: ReportCard) -> str:
    """One sentence per student."""
    said = []
    for name in card.names[1:]:
        own, teacher = card.quality[name], card.quality[card.teacher]
        share = own["parameters"] / teacher["parameters"]
        said.append(
            f"{name} answers {card.faster(name):.1f} times as fast as {card.teacher} with {share:.0%} of its "
            f"parameters; perplexity {own['ppl']:.3g} against {teacher['ppl']:.3g}."
        )
    return " ".join(said)


def frontier_svg(card: ReportCard) -> str:
    """The plot as SVG markup: milliseconds per reply and perplexity of each model."""
    points = {name: (card.milliseconds(name), card.quality[name]["ppl"]) for name in card.names}
    spread = {name: (card.latency[name][0].wait_ms_p20, card.latency[name][0].wait_ms_p80) for name in card.names}
    return plots.frontier("speed and quality", points, spread, "ms per reply (batch 1, greedy)", "perplexity")


def overview(card: ReportCard) -> tuple[list[str], list[list[str]]]:
    """Header and rows: size, speed and quality of each model."""
    shown = card.shown()
    header = ["model", "parameters", "ms/reply", "p20 to p80", "times faster", *shown.values()]
    rows = []
    for name in card.names:
        values = card.quality[name]
        timed = card.latency[name][0]
        spread = f"{timed.wait_ms_p20:.1f} to {timed.wait_ms_p80:.1f}"
        cells = [f"{values['parameters']:,.0f}", f"{timed.wait_ms_p50:.1f}", spread, f"{card.faster(name):.2f}"]
        rows.append([name, *cells, *(_cell(metric, values.get(metric)) for metric in shown)])
    return header, rows


def speeds(card: ReportCard) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every latency case of each model."""
    header = ["model", "case", "p50 ms", "p90 ms", "p99 ms", "tokens/s", "tokens/reply", "MiB"]
    rows = []
    for name in card.names:
        for row in card.latency[name]:
            case = f"{row.mode}, {_beams(row.beams)}, batch {row.batch}, {row.dtype}, {row.attention}"
            case += ("" if row.kv_cache else ", no KV cache") + (", compiled" if row.compiled else "")
            times = [f"{value:.1f}" for value in (row.wait_ms_p50, row.wait_ms_p90, row.wait_ms_p99)]
            memory = row.weights_mib if row.peak_mib is None else row.peak_mib
            rows.append(
                [name, case, *times, f"{row.tokens_per_second:,.0f}", f"{row.new_tokens:.1f}", f"{memory:,.1f}"]
            )
    return header, rows


def backends(card: ReportCard) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the first student by each program."""
    return backend_table(card.backends, dict.fromkeys((row.model for row in card.backends), card.names[1]), card.judged)


def sample_rows(card: ReportCard) -> list[list[str]]:
    """What was said, the right answer, and each model's reply."""
    return [[s.context, s.reference, *(s.replies[name] for name in card.names)] for s in card.samples[:_SAMPLES]]


def _dataset_tables(card: ReportCard) -> list[str]:
    datasets = dict.fromkeys(name.rsplit("/", 1)[0] for name in card.quality[card.teacher] if "/" in name)
    made = []
    for dataset in datasets:
        shown = card.shown(f"{dataset}/")
        rows = [[name, *(_cell(m, card.quality[name].get(f"{dataset}/{m}")) for m in shown)] for name in card.names]
        made.append(page.table([dataset, *shown.values()], rows))
    return made


def _beams(beams: int) -> str:
    return "greedy" if beams == 1 else f"{beams} beams"


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.4g}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(_one_line(cell) for cell in line)} |\n" for line in lines)


def _one_line(text: str) -> str:
    """Text that cannot leave its cell, nor become markup."""
    for mark in ("\\", "|", "<", "`", "*", "_", "["):
        text = text.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return text.replace("\n", "<br>")
