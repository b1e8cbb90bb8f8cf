"""The newest checkpoint that verifies, looked for by all ranks: each reads the files that it wrote, and will load.

Together that is every file, once; what a rank has read is then in its own node's memory when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from distill_engine.checkpoint.agreement import everywhere, on_first_rank, plain_reason
from distill_engine.checkpoint.folder import CheckpointFolder, CheckpointInfo
from distill_engine.checkpoint.manifest import (
    BadCheckpoint,
    CheckpointError,
    Manifest,
    see_files,
    verify_digests,
    writer_of,
)
from distill_engine.cluster.ranks import Ranks

T = TypeVar("T")


def newest_that_verifies(
    disk: CheckpointFolder, ranks: Ranks, explain: Callable[[Exception], str], warn: Callable[[str], None]
) -> CheckpointInfo | None:
    """The newest good checkpoint, with a warning on rank 0 for each passed over; None if there is none at all.

    Collective. Rank 0 looks at names, sizes and owners, then every rank at what is in its own files. CheckpointError
    if there are checkpoints but none is good, RankFailures if somebody else could have written one.
    """
    reasons: list[str] = []
    for name in on_first_rank(ranks, disk.names, explain):
        found = on_first_rank(ranks, partial(_or_why, partial(disk.claimed, name)), explain)
        bad = [found] if isinstance(found, str) else _objections(disk, name, found, ranks, explain)
        if bad or isinstance(found, str):
            disk.reject(name)
            reasons.append(f"{name}: {bad[0]}")
            continue
        for reason in reasons if ranks.rank == 0 else ():
            warn(f"Checkpoint {reason}. It is not used; going back to {name}.")
        return disk.accept(name, found)
    if reasons:
        listed = "".join(f"\n  {reason}" for reason in reasons)
        raise CheckpointError(
            f"None of the checkpoints in {disk.path} can be used:{listed}\nStarting afresh would hide that loss. "
            "Put a good copy back, or choose another run folder (--run-dir) to start from the beginning."
        )
    return None


def files_of(names: Iterable[str], rank: int, world_size: int) -> list[str]:
    """Those that a rank reads before any rank loads them."""
    return [name for name in names if writer_of(name, world_size) == rank]


def _or_why(look: Callable[[], T]) -> T | str:
    """What a look at a checkpoint gives, or why it is bad."""
    try:
        return look()
    except BadCheckpoint as bad:
        return str(bad)
    except OSError as error:
        return f"it cannot be read ({plain_reason(error)})"


def _objections(
    disk: CheckpointFolder, name: str, manifest: Manifest, ranks: Ranks, explain: Callable[[Exception], str]
) -> list[str]:
    """What ranks have found wrong with their own files."""
    look = partial(_look_at_own, disk, name, manifest, ranks)
    return [answer for answer in everywhere(ranks, partial(_or_why, look), explain) if answer]


def _look_at_own(disk: CheckpointFolder, name: str, manifest: Manifest, ranks: Ranks) -> None:
    """Raises BadCheckpoint if this rank does not see what it will load, or its own files are not what was written."""
    own = files_of(manifest.files, ranks.rank, ranks.world_size)
    loaded = {*own, *files_of(manifest.files, 0, ranks.world_size)}
    if manifest.world_size != ranks.world_size:
        loaded = set(manifest.files)  # divided anew: any rank may take a part of any file
    see_files(disk.path / name, manifest, loaded, disk.patience)
    verify_digests(disk.path / name, manifest, own)
