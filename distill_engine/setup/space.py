"""Room on the disk for what a run will keep, computed from its own sizes before it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distill_engine.checkpoint.agreement import RankFailures, Ranks, on_first_rank
from distill_engine.checkpoint.files import free_bytes, readable_bytes, write_failure
from distill_engine.checkpoint.folder import CheckpointFolder
from distill_engine.checkpoint.retention import Retention
from distill_engine.setup.run_folder import RunFolderError


@dataclass(frozen=True)
class Space:
    """Sizes of one run.

    checkpoint  bytes of one: the module, and the optimizer's state of all ranks
    export      bytes of one exported student
    keep        the rules about which checkpoints stay
    max_steps   where the run ends, if that is known
    """

    checkpoint: int
    export: int
    keep: Retention
    max_steps: int | None = None

    @property
    def most_kept(self) -> int:
        """Checkpoints that the rules may keep at the same time."""
        milestones = 0 if self.keep.every is None else (self.max_steps or self.keep.every) // self.keep.every
        return self.keep.last + self.keep.best + milestones

    def needed(self, checkpoints: int, exports: int) -> int:
        """Bytes that must be free beside what is there already; a new one is written before an old one goes."""
        return self.checkpoint * max(1, self.most_kept + 1 - checkpoints) + self.export * max(1, 2 - exports)

    def words(self) -> str:
        """What the sum is made of."""
        more = "" if self.keep.every is None or self.max_steps else f", one more each {self.keep.every} steps"
        return (
            f"a checkpoint takes {readable_bytes(self.checkpoint)} (up to {self.most_kept} kept and one being "
            f"written{more}), an export {readable_bytes(self.export)} (one kept and one being written)"
        )


def check_space(folder: Path, ranks: Ranks, space: Space, say: Callable[[str], None]) -> None:
    """Tell rank 0's `say` what the run in `folder` needs beside what it has, and whether there is room. Collective.

    RunFolderError on all ranks if not even one checkpoint and one export fit; less than all is a warning, since
    others may free space, and a run may end before it needs it.
    """

    def look() -> None:
        exports = folder / "exports"
        present = len(CheckpointFolder(folder / "checkpoints", keep=space.keep).names())
        needed = space.needed(present, len(list(exports.glob("step-*"))) if exports.is_dir() else 0)
        left = free_bytes(folder)
        line = f"{folder} needs {readable_bytes(needed)}, {readable_bytes(left)} are free: {space.words()}"
        if left < space.checkpoint + space.export:
            raise RunFolderError(
                f"The run folder {line}. Not even one of each fits. Free space, or choose another folder (--run-dir)."
            )
        if left < needed:
            rest = "Free space, or keep fewer (checkpoint.keep_last, keep_best, keep_every)"
            say(f"warning: {line}. Saves will fail when it is used up. {rest}")
        else:
            say(line)

    try:
        on_first_rank(ranks, look, lambda error: _reason(error, folder))
    except RankFailures as failures:
        raise RunFolderError(failures.reasons[0]) from failures


def _reason(error: Exception, folder: Path) -> str:
    return str(error) if isinstance(error, RunFolderError) else write_failure(error, folder)
