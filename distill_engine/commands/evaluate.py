"""`distill evaluate`: quality of several models on one recipe's data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from distill_engine.cluster.facts import ClusterError, ClusterFacts, read_cluster
from distill_engine.cluster.other_ranks import OtherRanks, ranks_of_step
from distill_engine.commands.terminal import SetOption, end, refuse, tell
from distill_engine.metrics.named import by_shown_name, is_share
from distill_engine.metrics.replies import length_groups

if TYPE_CHECKING:
    from distill_engine.data.episodes import Split
    from distill_engine.evaluate.compare import Loaded
    from distill_engine.evaluate.run import Evaluation, ReplySettings

ModelsArgument = Annotated[list[str], typer.Argument(help="Model folders, run folders (their best/), or Hub names.")]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", help="Recipe that names the data; default: the first run folder's.")
]
TeacherOption = Annotated[str | None, typer.Option("--teacher", help="Teacher to compare with; default: the recipe's.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")]
GenerationOption = Annotated[
    list[str],
    typer.Option(
        "--generation", metavar="name=value", help="Change one of the model's own generation settings (num_beams=4)."
    ),
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Examples at a time.")]
SplitName = Literal["train", "valid", "test"]
Dtype = Literal["fp32", "bf16", "fp16"]
PartialOption = Annotated[
    Path, typer.Option("--partial", help="Where partial results are kept, from which the same command resumes.")
]
ResumeOption = Annotated[bool, typer.Option("--resume/--fresh", help="Go on from partial results, or begin afresh.")]
DEFAULT_PARTIAL = Path("runs") / ".evaluations"
_STEPS = ".steps"  # beside partial results


def evaluate(
    models: ModelsArgument,
    recipe: RecipeOption = None,
    teacher: TeacherOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    split: Annotated[SplitName, typer.Option(help="Which examples, of the datasets that have the split.")] = "valid",
    generate: Annotated[
        bool, typer.Option("--generate", help="Also generate replies: F1, BLEU, distinct, length, repetition.")
    ] = False,
    generation: GenerationOption = [],  # noqa: B006
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Also measure ms per reply.")] = False,
    batch_size: BatchOption = 32,
    dtype: Annotated[Dtype, typer.Option(help="Precision of models and teacher.")] = "fp32",
    partial: PartialOption = DEFAULT_PARTIAL,
    resume: ResumeOption = True,
    json_file: JsonOption = None,
) -> None:
    """Perplexity, token accuracy and closeness to the teacher per dataset; with --generate also replies.

    Names and numbers are ParlAI's where it has the metric. Under a launcher (torchrun, srun, deepspeed) the ranks
    share the work.
    """
    facts = facts_of_start()
    rank = facts.rank
    try:
        with ranks_of_step(partial / _STEPS, facts) as others:
            loaded = loaded_models(models, recipe, overrides, teacher, dtype, split)
            if rank == 0 and loaded.without_split:
                # a mean over fewer datasets is another number
                tell(f"without a {loaded.split} split, and left out: {', '.join(loaded.without_split)}")
            spoken = reply_settings(loaded, generation) if generate or generation else None
            if rank == 0 and spoken is not None:
                say_generation_notes(loaded, spoken)
            done = measured(loaded, spoken, batch_size, partial, resume, others)
        rows = with_sizes(loaded, done.values)
        if latency and rank == 0:
            add_latency(loaded, rows)
    except (ValueError, OSError) as error:
        end(error, partial)
    if rank != 0:
        return
    print_rows(rows, list(loaded.datasets) if len(loaded.datasets) > 1 else [])
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


# ---- shared with report-card -------------------------------------------------------------------------------------


def facts_of_start() -> ClusterFacts:
    """What the launcher says. Refuses a contradictory environment."""
    try:
        return read_cluster(os.environ)
    except ClusterError as error:
        refuse(error)


def ranks() -> tuple[int, int]:
    """Rank and world size of it; (0, 1) without a launcher."""
    facts = facts_of_start()
    return facts.rank, facts.world_size


def loaded_models(
    models: list[str],
    recipe: Path | None,
    overrides: list[str],
    teacher: str | None,
    dtype: Dtype,
    split: Split = "valid",
) -> Loaded:
    """Models, teacher and data. Raises ValueError that says what to correct."""
    import torch

    from distill_engine.evaluate.compare import load_models

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return load_models(models, recipe, overrides, teacher, dtypes[dtype], split)


def reply_settings(loaded: Loaded, generation: list[str]) -> ReplySettings:
    """The models' own settings with --generation on top; a reply ends at data.label_tokens if a model has no limit."""
    from distill_engine.evaluate.generate import parse_settings
    from distill_engine.evaluate.run import ReplySettings

    return ReplySettings(loaded.ready.recipe.data.label_tokens, parse_settings(generation))


def say_generation_notes(loaded: Loaded, spoken: ReplySettings) -> None:
    """On stderr: what of the models' own settings could not be kept."""
    from distill_engine.evaluate.generate import notes_on

    for name, model in loaded.models.items():
        for note in notes_on(model, spoken.new_tokens, spoken.changed):
            tell(f"{name}: {note}")


def measured(
    loaded: Loaded,
    spoken: ReplySettings | None,
    batch_size: int,
    partial: Path,
    resume: bool,
    others: OtherRanks | None = None,
) -> Evaluation:
    """The evaluation, with a progress bar per model on rank 0's stderr."""
    from distill_engine.evaluate.compare import evaluation_set
    from distill_engine.evaluate.run import Work, run_evaluation

    rank, world_size = ranks()
    with progress_bars(show=rank == 0) as advance:
        return run_evaluation(
            loaded.models,
            loaded.teacher,
            evaluation_set(loaded, batch_size),
            list(loaded.datasets),
            loaded.ready.tokenizer,
            Work(partial, rank, world_size, resume, advance, others),
            spoken,
        )


def with_sizes(loaded: Loaded, values: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The rows with `parameters` in front."""
    from distill_engine.evaluate.measure import parameter_count

    return {name: {"parameters": float(parameter_count(loaded.models[name])), **row} for name, row in values.items()}


def add_latency(loaded: Loaded, rows: dict[str, dict[str, float]]) -> None:
    """`ms_per_reply` (batch 1, greedy, 16 tokens, median) to each row."""
    from distill_engine.evaluate.compare import contexts_of
    from distill_engine.evaluate.latency import measure_latency

    for name, one in measure_latency(loaded.models, contexts_of(loaded.first_dataset, loaded.device)).items():
        rows[name]["ms_per_reply"] = one.median_ms


@contextmanager
def progress_bars(show: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A function (name, done, all) that moves the bar of that name; on stderr, so that stdout stays a table."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not show, transient=True) as progress:
        bars = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            progress.update(bars[name], completed=done)

        yield advance


def print_rows(rows: Mapping[str, Mapping[str, float]], labels: list[str]) -> None:
    """A table with a column per model, then one per dataset if there are several."""
    console = Console()
    known = ("parameters", *by_shown_name(), "reply_tokens", "ms_per_reply")
    for dataset in ["", *labels, *length_groups(next(iter(rows.values()), {}))]:
        prefix = f"{dataset}/" if dataset else ""
        names = [name for name in known if any(prefix + name in row for row in rows.values())]
        table = Table(title=dataset or ("all datasets" if labels else None), title_justify="left")
        table.add_column("", no_wrap=True)
        for short in short_names(rows).values():
            table.add_column(Text(short, overflow="fold"), justify="right", min_width=9)
        for name in names:
            cells = (shown(name, values.get(prefix + name)) for values in rows.values())
            table.add_row(name.replace("_", " "), *cells)
        console.print(table)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each name -> its last path components, as few as tell it from the others."""
    given = list(dict.fromkeys(names))
    parts = {name: [part for part in name.split("/") if part] or [name] for name in given}
    for length in range(1, max((len(one) for one in parts.values()), default=0) + 1):
        short = {name: "/".join(parts[name][-length:]) for name in given}
        if len(set(short.values())) == len(given):
            return short
    return {name: name for name in given}


def shown(name: str, value: float | None) -> str:
    """A value as people read it: shares in per cent."""
    if value is None:
        return "-"
    if is_share(name):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1000 else f"{value:.4g}"
