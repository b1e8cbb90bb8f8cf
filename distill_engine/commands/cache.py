"""`distill cache RECIPE --out DIR`: a teacher's outputs, computed once for many students."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distill_engine.cluster.other_ranks import ranks_of_step
from distill_engine.commands.evaluate import facts_of_start
from distill_engine.commands.terminal import ERR, SetOption, end, refuse, tell

Dtype = Literal["fp32", "bf16", "fp16"]
_MIB = 2**20


def cache(
    recipe: Annotated[Path, typer.Argument(help="Recipe: its loss weights and layer maps say what is kept.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the cache; the same one again goes on.")],
    k: Annotated[
        str, typer.Option("--k", help="Tokens of each position whose log-probabilities are kept; all: every logit.")
    ] = "64",
    precision: Annotated[Dtype, typer.Option(help="Precision of the teacher's passes.")] = "fp32",
    dtype: Annotated[Dtype | None, typer.Option(help="Precision of what is kept; default: of the passes.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Examples of a pass; default: the recipe's.")
    ] = None,
    shard_mib: Annotated[float, typer.Option("--shard-mib", min=0.001, help="About so large a shard becomes.")] = 256.0,
    overrides: SetOption = [],  # noqa: B006  typer copies it
) -> None:
    """Run the teacher once over the training and validation examples and keep what the losses compare.

    `teacher.source: cache` with `teacher.cache: DIR` then trains without a teacher in memory. The size is said before
    anything is written. Under a launcher (torchrun, srun, deepspeed) the ranks share the work. After a kill the same
    command goes on, with any number of ranks; a recipe with further data adds to the folder.
    """
    if k != "all" and (not k.isdecimal() or int(k) < 1):
        refuse(ValueError(f"--k is {k!r}. It is a number of tokens, such as 64, or all."))
    from distill_engine.assembly.cache_files import WORK
    from distill_engine.assembly.caching import Settings, Share, cache_maker
    from distill_engine.recipe.rules import read_recipe

    facts = facts_of_start()
    rank = facts.rank
    try:
        read = read_recipe(recipe, overrides)
        per_batch = batch_size or read.validation.per_rank_batch or read.batch.per_rank
        kept = None if k == "all" else int(k)
        settings = Settings(kept, dtype or precision, precision, per_batch, int(shard_mib * _MIB))
        with ranks_of_step(out / WORK, facts) as others:
            maker = cache_maker(read, recipe, out, settings, Share(rank, facts.world_size))
            said = maker.require_fit()
            if rank == 0:
                tell(said)
            with _progress(rank == 0, maker.missing()[2]) as advance:
                maker.write(advance, others)
    except (ValueError, OSError) as error:
        end(error, out)
    if rank == 0:
        tell(f"{out} is complete: teacher.source: cache, teacher.cache: {out.absolute()}")


@contextmanager
def _progress(show: bool, examples: int) -> Iterator[Callable[[int], None]]:
    """A bar of this rank's examples, out of those of all ranks."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=ERR, transient=True, disable=not show) as progress:
        bar = progress.add_task("examples", total=examples)
        yield lambda done: progress.advance(bar, done)
