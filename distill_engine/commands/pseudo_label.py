"""`distill pseudo-label`: the teacher's text for every training example, as data that a recipe mixes with gold."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from distill_engine.cluster.other_ranks import OtherRanks, ranks_of_step
from distill_engine.commands.evaluate import (
    BatchOption,
    Dtype,
    GenerationOption,
    facts_of_start,
    progress_bars,
    ranks,
)
from distill_engine.commands.terminal import ERR, SetOption, end, refuse, tell

if TYPE_CHECKING:
    import torch

    from distill_engine.pseudo_labels.filters import Filters
    from distill_engine.pseudo_labels.generate import Job
    from distill_engine.pseudo_labels.write import Written
    from distill_engine.setup.prepare import Prepared

WORK, SUMMARY = "work", "summary.json"
_LINE_SECONDS = 60.0


def pseudo_label(
    recipe: Annotated[Path, typer.Argument(help="Recipe: its teacher answers its datasets' training examples.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the result; the same command again goes on in it.")],
    model: Annotated[str | None, typer.Option("--model", help="Another model than the recipe's teacher.")] = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    generation: GenerationOption = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of settings that sample.")] = 0,
    batch_size: BatchOption = 32,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the model.")] = "fp32",
    placement: Annotated[
        Literal["replica", "zero3"], typer.Option(help="The whole model on every rank, or shards over all of them.")
    ] = "replica",
    length_ratio: Annotated[
        float | None,
        typer.Option("--max-length-ratio", min=1.0, help="Leave out texts N times as long as gold, or as short."),
    ] = None,
    repetition: Annotated[
        float | None,
        typer.Option("--max-repetition", min=0.0, max=1.0, help="Leave out texts that repeat more of their 3-grams."),
    ] = None,
    at_most: Annotated[
        list[str], typer.Option("--at-most", metavar="METRIC=N", help="Leave out texts above it (wer=0.3).")
    ] = [],  # noqa: B006
    at_least: Annotated[
        list[str], typer.Option("--at-least", metavar="METRIC=N", help="Leave out texts below it (rouge_l=0.2).")
    ] = [],  # noqa: B006
) -> None:
    """Write the teacher's text for every training example, and the recipe entries that read it.

    Beams and sampling are --generation settings. Under a launcher (torchrun, srun, deepspeed) the ranks share the work.
    A killed start goes on where it was; other filters on the same texts cost no generation.
    """
    from distill_engine.pseudo_labels.filters import Filters, parse_limits

    facts = facts_of_start()
    rank = facts.rank
    try:
        filters = Filters(length_ratio, repetition, parse_limits(at_most, at_least))
        with ranks_of_step(out / WORK, facts) as others:
            ready, job, shards = _job(recipe, overrides, model, generation, batch_size, dtype, seed, placement)
            with nullcontext() if shards is None else shards.to_the_end():
                written = _made(ready, job, filters, out, shards, others)
                if rank == 0:
                    _write_summary(job, filters, written, out)
    except (ValueError, OSError) as error:
        end(error, out)
    if rank == 0:
        _show(written)


class _Shards:
    """A model in shards over the ranks of a process group, which it joins."""

    def __init__(self, name: str, dtype: Dtype, precision: torch.dtype) -> None:
        """Raises PseudoLabelError for a model or a process group that cannot be used."""
        from distill_engine.engine import distributed
        from distill_engine.engine.ds_config import load_ds_config, teacher_config
        from distill_engine.engine.teacher import TeacherEngine
        from distill_engine.models.adapter import adapt
        from distill_engine.models.loading import local_copy
        from distill_engine.pseudo_labels.generate import PseudoLabelError
        from distill_engine.recipe.shipped import DEFAULT_TEACHER_DS_CONFIG

        base = load_ds_config(DEFAULT_TEACHER_DS_CONFIG)
        try:
            self.ranks = distributed.start()
            config = teacher_config(base, dtype=dtype, world_size=self.ranks.world_size)
            folder = local_copy(name)
            self._engine = TeacherEngine(folder, config, precision, self.ranks, adapt, "zero3", keeps_head=False)
        except RuntimeError as error:  # LaunchError, TeacherError
            raise PseudoLabelError(str(error)) from error
        self.model = self._engine.model

    @contextmanager
    def to_the_end(self) -> Iterator[None]:
        """Leave the group when all ranks are done; after an error the launcher ends those that wait."""
        from distill_engine.engine import distributed

        yield
        with self.ranks.unhurried("pseudo-labels"):
            pass  # rank 0 may have written for long
        distributed.stop()


def _job(
    recipe: Path,
    overrides: list[str],
    model: str | None,
    generation: list[str],
    batch: int,
    dtype: Dtype,
    seed: int,
    placement: str,
) -> tuple[Prepared, Job, _Shards | None]:
    """The recipe's data and who answers it, in memory. Raises ValueError that says what to correct."""
    import torch

    from distill_engine.evaluate.compare import model_folder, own_device, prepared
    from distill_engine.evaluate.generate import notes_on, parse_settings
    from distill_engine.evaluate.measure import load_model
    from distill_engine.evaluate.set import EvaluationSet
    from distill_engine.pseudo_labels.generate import Job, PseudoLabelError, check_language
    from distill_engine.pseudo_labels.write import check_kinds

    changed = parse_settings(generation)
    ready = prepared([], recipe, overrides)
    check_kinds(ready)
    if model is None:
        changed = {**ready.told, **changed}  # the teacher answers in the language that is asked of the student
    else:
        check_language(ready, changed)
    name = model or (str(ready.teacher_folder) if ready.teacher_folder else None)
    if name is None:
        raise PseudoLabelError(f"{recipe}: teacher.path is null, so nobody answers. Name a model with --model.")
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    shards = _Shards(model_folder(name), dtype, precision) if placement == "zero3" else None
    loaded = load_model(model_folder(name), own_device(), precision) if shards is None else shards.model
    examples = EvaluationSet(ready.train_datasets, ready.layout, ready.tokenizer, batch)
    new_tokens = ready.recipe.data.label_tokens
    if ranks()[0] == 0:
        for note in notes_on(loaded, new_tokens, changed):
            tell(f"{name}: {note}")
    return ready, Job(name, loaded, examples, ready.tokenizer, new_tokens, changed, seed), shards


def _made(
    ready: Prepared, job: Job, filters: Filters, out: Path, shards: _Shards | None, others: OtherRanks | None
) -> list[Written]:
    """Generate this rank's share; rank 0 writes what all have generated, the others return nothing."""
    from distill_engine.evaluate.run import Work
    from distill_engine.pseudo_labels.generate import generate
    from distill_engine.pseudo_labels.write import write

    rank, world_size = ranks()
    with _progress(rank == 0) as advance:
        work = Work(out / WORK, rank, world_size, advance=advance, others=others)
        answers = generate(job, work, None if shards is None else shards.ranks)
        return [] if answers is None else write(ready, answers, filters, out)


@contextmanager
def _progress(show: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar in a terminal; elsewhere a line a minute."""
    if not show or sys.stderr.isatty():
        with progress_bars(show) as advance:
            yield advance
        return
    begun = said = time.monotonic()

    def line(name: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > _LINE_SECONDS:
            said = time.monotonic()
            tell(f"{name}: {done:,} of {total:,} batches after {said - begun:,.0f} s")

    yield line


def _write_summary(job: Job, filters: Filters, written: list[Written], out: Path) -> None:
    """What was generated how, and what was kept."""
    from distill_engine.cluster.files import replace_text

    limits = [{"metric": one.metric.name, "at_most" if one.most else "at_least": one.bound} for one in filters.limits]
    content = {
        "model": job.name,
        "settings": job.settings,
        "seed": job.seed,
        "dtype": str(job.model.dtype).removeprefix("torch."),
        "filters": {"length_ratio": filters.length_ratio, "repetition": filters.repetition, "limits": limits},
        "datasets": [
            {"name": one.title, "file": one.file.name, "examples": one.examples, "kept": one.kept,
             "left_out": one.left_out} for one in written
        ],
    }  # fmt: skip
    replace_text(out / SUMMARY, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def _show(written: list[Written]) -> None:
    """Counts on stderr, and the entries for data.datasets on stdout."""
    from distill_engine.recipe.yaml_text import dump_yaml

    table = Table("dataset", "examples", "kept", "left out")
    for one in written:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in one.left_out.items()) or "-"
        table.add_row(Text(one.title), f"{one.examples:,}", f"{one.kept:,}", Text(reasons))
    ERR.print(table)
    entries = [dict(one.entry) for one in written if one.entry is not None]
    if not entries:
        refuse(ValueError("the filters leave out every text. Loosen them: the texts are not generated again."))
    tell("Add to data.datasets of a recipe; `weight` says how often they come beside gold (docs/teachers.md):")
    typer.echo(dump_yaml(entries), nl=False)
