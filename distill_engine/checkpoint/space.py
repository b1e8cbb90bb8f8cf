"""How much room on the disk a run's checkpoints and exports take. Arithmetic only: a login node uses it as well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill_engine.checkpoint.files import readable_bytes
from distill_engine.checkpoint.retention import Retention


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

    @property
    def least(self) -> int:
        """Bytes without which a run cannot even save once: one checkpoint and one export."""
        return self.checkpoint + self.export

    def needed(self, checkpoints: int, exports: int) -> int:
        """Bytes that must be free beside what is there already; a new one is written before an old one goes."""
        return self.checkpoint * max(1, self.most_kept + 1 - checkpoints) + self.export * max(1, 2 - exports)

    def needed_in(self, run_folder: Path) -> int:
        """`needed` beside what a run folder holds; it need not exist yet."""
        return self.needed(*(len(list((run_folder / name).glob("step-*"))) for name in ("checkpoints", "exports")))

    def words(self) -> str:
        """What the sum is made of."""
        more = "" if self.keep.every is None or self.max_steps else f", one more each {self.keep.every} steps"
        return (
            f"a checkpoint takes {readable_bytes(self.checkpoint)} (up to {self.most_kept} kept and one being "
            f"written{more}), an export {readable_bytes(self.export)} (one kept and one being written)"
        )
