"""How the run in a folder shares out its optimizer steps: as its recipe says, or as another number of ranks has to.

A step has as many examples as at the first start, whatever the number of ranks; checkpoints carry that number.
"""

from __future__ import annotations

from pathlib import Path

from distill_engine.checkpoint.agreement import RankFailures, on_first_rank, plain_reason
from distill_engine.checkpoint.folder import CheckpointFolder
from distill_engine.checkpoint.manifest import Manifest
from distill_engine.checkpoint.refusals import other_size
from distill_engine.checkpoint.retention import Retention
from distill_engine.cluster.ranks import Ranks
from distill_engine.data.order.split import BatchSplit
from distill_engine.recipe.schema import Recipe


class ResizeError(ValueError):
    """The run in this folder cannot go on with so many ranks, or nobody has said that it should."""


def split_of(recipe: Recipe, world_size: int) -> BatchSplit:
    """How a new run's ranks share a step."""
    batch = recipe.batch
    return BatchSplit(batch.per_rank, batch.accumulation_steps, world_size, batch.max_tokens is not None)


def batch_split(recipe: Recipe, checkpoints: Path, ranks: Ranks, *, resize: bool) -> tuple[BatchSplit, list[str]]:
    """How the ranks share a step of the run that has its checkpoints there, and lines for people.

    Collective. Looks at the newest checkpoint's manifest only: before any model is loaded. Raises ResizeError on all
    ranks if the checkpoint is of another number of ranks and `resize` is off, or the ranks cannot share a step.
    """
    own = split_of(recipe, ranks.world_size)
    manifest = _newest(checkpoints, ranks)
    if manifest is None:
        return own, []
    was = manifest.world_size
    if was != ranks.world_size and not resize:
        raise ResizeError(other_size(checkpoints, was, ranks.world_size))
    try:
        split = own.shared_by(ranks.world_size, _per_step(own, manifest))
    except ValueError as error:
        raise ResizeError(f"{checkpoints}: {error}") from error
    return split, _lines(recipe, own, split, was)


def newest_step(checkpoints: Path) -> int | None:
    """Step of the newest checkpoint there that says what it is; None if there is none. For one rank."""
    manifest = CheckpointFolder(checkpoints, keep=Retention(last=1)).newest_manifest()
    return None if manifest is None else manifest.step


def _newest(checkpoints: Path, ranks: Ranks) -> Manifest | None:
    folder = CheckpointFolder(checkpoints, keep=Retention(last=1))
    try:
        return on_first_rank(ranks, folder.newest_manifest, plain_reason)
    except RankFailures as failures:
        raise ResizeError(f"{checkpoints} cannot be read: {failures.reasons[0]}") from failures


def _per_step(own: BatchSplit, manifest: Manifest) -> int:
    (key,) = own.identity
    found = manifest.identity.get(key)
    if isinstance(found, int) and found > 0:
        return found
    # of a run with the other kind of batches, which will be refused by its identity, with what differs
    return own.per_step // own.world_size * manifest.world_size


def _lines(recipe: Recipe, own: BatchSplit, split: BatchSplit, was: int) -> list[str]:
    if split == own and was == split.world_size:
        return []
    lines = [f"{split} (the recipe: {own.per_rank} x {own.accumulation_steps})"]
    if was != split.world_size:
        lines.insert(0, f"going on with {split.world_size} ranks instead of {was}: same examples in each step")
        if recipe.losses.definition == "parlai":
            lines.append(
                "losses.definition is parlai: its means are taken per micro-batch and rank, so losses and gradients "
                "differ from those of the other number of ranks (those of `invariant` do not)"
            )
    return lines
