"""`distill report` and `distill report-card`: pages to look at and to show around."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from distill_engine.commands.backends import judged, opened
from distill_engine.commands.backends import measured as by_programs
from distill_engine.commands.evaluate import (
    DEFAULT_PARTIAL,
    BatchOption,
    GenerationOption,
    PartialOption,
    RecipeOption,
    ResumeOption,
    loaded_models,
    measured,
    ranks,
    reply_settings,
    short_names,
    with_sizes,
)
from distill_engine.commands.latency import case_list, progress_bar
from distill_engine.commands.terminal import SetOption, refuse, say

if TYPE_CHECKING:
    from distill_engine.evaluate.agreement import Prompts
    from distill_engine.evaluate.backend_rows import BackendRow
    from distill_engine.evaluate.compare import Loaded
    from distill_engine.evaluate.latency_rows import Case, LatencyRow
    from distill_engine.export.backends import Running
    from distill_engine.reports.report_card import ReportCard

_CONTEXTS = 64


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file; default: report.html in the run folder.")
    ] = None,
) -> None:
    """One HTML page with plots and tables of everything a run has recorded; needs no network."""
    from distill_engine.reports.history import read_run
    from distill_engine.reports.run_report import run_report

    target = out or run / "report.html"
    try:
        text = run_report(read_run(run))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        refuse(error)
    say(f"the report is in {target}")


def report_card(
    teacher: Annotated[str, typer.Argument(help="The teacher: folder, run folder or Hub name.")],
    students: Annotated[list[str], typer.Argument(help="The students: folders, run folders or Hub names.")],
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    out: Annotated[Path, typer.Option("--out", help="Folder for report_card.html, .md, .json and frontier.svg.")] = (
        Path("report_card")
    ),
    into: Annotated[
        list[Path], typer.Option("--into", help="Exported model whose README.md gets a short version; repeatable.")
    ] = [],  # noqa: B006
    generation: GenerationOption = [],  # noqa: B006
    beams: Annotated[str, typer.Option("--beams", help="Beam sizes of the latency run, 1 is greedy.")] = "1,4",
    batches: Annotated[str, typer.Option("--batches", help="Batch sizes of the latency run.")] = "1,8",
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of a reply in fixed latency cases.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each latency case.")] = 10,
    backends: Annotated[
        str, typer.Option("--backends", help="Also the first student by these programs (see `distill latency`).")
    ] = "",
    batch_size: BatchOption = 32,
    partial: PartialOption = DEFAULT_PARTIAL,
    resume: ResumeOption = True,
) -> None:
    """Speed against quality of a teacher and its students: plot, tables, replies side by side, how it was made."""
    from distill_engine.evaluate.agreement import validation_prompts
    from distill_engine.export.backends import chosen_backends

    try:
        if ranks()[1] > 1:
            raise ValueError("report-card times models, which ranks beside it would disturb: start it as one process.")
        names = chosen_backends(backends) if backends else []
        cases = _with_headline(case_list("fixed,free", beams, batches, True, False))
        loaded = loaded_models([teacher, *students], recipe, overrides, teacher, "fp32")
        if names and loaded.ready.family.inputs != "tokens":
            raise ValueError("--backends: programs beside PyTorch run models that read texts. Leave it out.")
        prompts = validation_prompts(loaded.first_dataset, loaded.ready.tokenizer, _CONTEXTS) if names else None
        with TemporaryDirectory() as folder:
            programs = [] if prompts is None else opened(students[0], names, Path(folder), prompts)
            # latency first: evaluating attaches what gives features, which costs a little at every layer
            rows = _latency(loaded, cases, rounds, new_tokens)
            compared = [] if prompts is None else _by_programs(prompts, students[0], programs, rounds, new_tokens)
        done = measured(loaded, reply_settings(loaded, generation), batch_size, partial, resume)
        card = _card(loaded, with_sizes(loaded, done.values), rows, done.samples, generation, compared)
        _write(card, out, into)
    except (ValueError, OSError) as error:
        refuse(error)
    from distill_engine.reports.report_card import headline

    Console().print(headline(card), highlight=False)
    say(f"the report card is in {out / 'report_card.html'}")


def _with_headline(cases: list[Case]) -> list[Case]:
    """The headline case in front: fixed tokens, greedy, one at a time."""
    from distill_engine.evaluate.latency_rows import Case

    first = Case("fixed")
    return [first, *(case for case in cases if case != first)]


def _latency(loaded: Loaded, cases: list[Case], rounds: int, new_tokens: int) -> list[LatencyRow]:
    from distill_engine.evaluate.compare import contexts_of
    from distill_engine.evaluate.latency import measure
    from distill_engine.evaluate.latency_rows import rows

    contexts = contexts_of(loaded.first_dataset, loaded.device, _CONTEXTS)
    with progress_bar("latency") as advance:
        return rows(loaded.models, measure(loaded.models, cases, contexts, rounds, 2, new_tokens, advance))


def _by_programs(
    prompts: Prompts, student: str, programs: Sequence[Running], rounds: int, new_tokens: int
) -> list[BackendRow]:
    with progress_bar("backends") as advance:
        return by_programs(student, programs, prompts, rounds, new_tokens, advance)


def _card(
    loaded: Loaded,
    values: dict[str, dict[str, float]],
    rows: list[LatencyRow],
    samples: Sequence[Any],
    generation: list[str],
    by_program: Sequence[BackendRow],
) -> ReportCard:
    from distill_engine.evaluate.run import Sample
    from distill_engine.metrics.text.bleu import bleu_signature
    from distill_engine.reports.report_card import ReportCard
    from distill_engine.telemetry.machine import machine_record

    short = short_names(values)
    ready = loaded.ready
    counts = ", ".join(f"{label} ({len(dataset):,})" for label, dataset in loaded.datasets.items())
    how = {
        "data": f"validation examples of recipe {ready.recipe.name}: {counts}",
        "quality": "teacher-forced, every example once, mean over datasets; F1 and token accuracy as ParlAI has them",
        "replies": "each model's own generation settings" + (f", with {', '.join(generation)}" if generation else ""),
        "BLEU": bleu_signature(),
        "latency": f"{rows[0].rounds} rounds after 2 to warm up, models and cases taking turns; ms/reply: "
        f"{rows[0].new_tokens:.0f} tokens, greedy, one at a time, {rows[0].dtype} on {rows[0].device}",
    }
    if by_program:
        how["backends"] = (
            f"the first student, latency as above; {by_program[0].prompts} validation prompts answered with its own "
            "generation settings: equal replies are those of torch (fp32), token by token"
        )
    return ReportCard(
        names=[short[name] for name in loaded.models],
        quality={short[name]: row for name, row in values.items()},
        latency={short[name]: [row for row in rows if row.model == name] for name in loaded.models},
        samples=[
            Sample(one.dataset, one.context, one.reference, {short[name]: text for name, text in one.replies.items()})
            for one in samples
        ],
        how=how,
        machine=machine_record(),
        backends=by_program,
        judged=judged(ready),
    )


def _write(card: ReportCard, out: Path, into: list[Path]) -> None:
    """All files of the card; raises ValueError for a folder of --into that is no exported model."""
    from distill_engine.reports.report_card import (
        card_html,
        card_markdown,
        frontier_svg,
        model_card_section,
        with_section,
    )

    out.mkdir(parents=True, exist_ok=True)
    numbers = {
        "quality": {name: dict(row) for name, row in card.quality.items()},
        "latency": [asdict(row) for rows in card.latency.values() for row in rows],
        "backends": [asdict(row) for row in card.backends],
        "how": dict(card.how),
        "machine": dict(card.machine),
    }
    (out / "report_card.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (out / "report_card.html").write_text(card_html(card), encoding="utf-8")
    (out / "report_card.md").write_text(card_markdown(card, "frontier.svg"), encoding="utf-8")
    (out / "frontier.svg").write_text(frontier_svg(card), encoding="utf-8")
    for folder in into:
        readme = folder / "README.md"
        if not (folder / "config.json").is_file():
            raise ValueError(f"--into {folder}: no exported model is there (no config.json). Name its folder.")
        text = readme.read_text(encoding="utf-8") if readme.is_file() else f"# {folder.resolve().name}\n"
        readme.write_text(with_section(text, model_card_section(card)), encoding="utf-8")
