"""Checkpoints that are complete or absent: kill the run at any instant, and the newest complete one still loads.

All ranks write their parts into a temporary folder, agree that every one succeeded, digest and force the files to the
disk; then rank 0 writes the manifest and renames the folder. Only that rename makes it a checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distill_engine.checkpoint.agreement import RankFailures, everywhere, on_first_rank, plain_reason
from distill_engine.checkpoint.background import ABANDON_SECONDS, BackgroundCall, Writing
from distill_engine.checkpoint.faults import fault_point
from distill_engine.checkpoint.files import LATE_SECONDS, remove_tree, write_failure
from distill_engine.checkpoint.folder import TEMPORARY, CheckpointFolder, CheckpointInfo
from distill_engine.checkpoint.manifest import (
    CheckpointError,
    FileFacts,
    Manifest,
    RefusedCheckpoint,
    digest_written,
    list_files,
    writer_of,
)
from distill_engine.checkpoint.part_calls import PartFailed, each_part, take_parts
from distill_engine.checkpoint.parts import Part
from distill_engine.checkpoint.refusals import refuse_other_parts, refuse_other_run
from distill_engine.checkpoint.retention import Retention
from distill_engine.checkpoint.search import files_of, newest_that_verifies
from distill_engine.checkpoint.trust import scan_pickles
from distill_engine.cluster.ranks import Ranks

TIDY_THREAD_NAME = "checkpoint-tidier"
_LOG = logging.getLogger(__name__)

__all__ = ["CheckpointError", "CheckpointInfo", "Checkpoints"]


class Refusal(str):
    """The reason of a RefusedCheckpoint, on its way to the other ranks."""


class Checkpoints:
    """The checkpoints of one run, in one folder that all ranks share.

    identity          what must not change between saving and resuming (flat; JSON values): recipe, data, tokenizer...
    keep              which complete checkpoints are
    max_failed_saves  saves in a row that may fail before the run is ended
    resize            whether a checkpoint of another number of ranks may be taken up
    allowed_globals   classes that the parts' own pickles (*.pt) may name; every such file is read by torch's restricted
                      unpickler before any part loads. None: not done, for parts that only ever load restricted
    warn              called on rank 0 with one line for people
    patience          seconds in which what another node has written must come into sight
    first             waited for by rank 0, in its writing thread, before a checkpoint may become complete: what the
                      checkpoint's state takes for granted outside of it

    `save`, `begin`, `finish`, `latest_complete` and `resume` are collective, and called by the main thread. The caller
    holds the run folder's RunLock.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        *,
        identity: Mapping[str, Any],
        keep: Retention,
        max_failed_saves: int = 3,
        resize: bool = False,
        allowed_globals: Collection[Callable[..., object]] | None = None,
        warn: Callable[[str], None] = _LOG.warning,
        patience: float = LATE_SECONDS,
        first: Callable[[], None] = lambda: None,
    ) -> None:
        # Through JSON, so that it compares equal to what is read back (tuples become lists).
        self.identity: dict[str, Any] = json.loads(json.dumps(dict(identity)))
        self._ranks = ranks
        self._max_failed_saves = max_failed_saves
        self._resize = resize
        self._allowed_globals = allowed_globals
        self._warn = warn
        self._failed_saves = 0
        self._writing: Writing | None = None
        self._tidying: BackgroundCall[str | None] | None = None
        self._first = first
        self._disk = CheckpointFolder(folder, keep=keep, patience=patience)

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._disk.path

    def save(self, step: int, parts: Mapping[str, Part], value: float | None = None) -> bool:
        """Write a checkpoint of `step`; whether there is one now.

        `value`: the metric that `keep.best` goes by, if it was measured at this very step; the same on every rank.

        A failure on any rank (a full disk, say) leaves the earlier checkpoints as they are, warns, and lets training
        go on; `max_failed_saves` failures in a row raise CheckpointError on all ranks. `parts` has the same names in
        the same order on every rank; a name is a plain folder name.
        """
        self.finish(wait=True)
        return self.begin(step, parts, value, snapshots=False) and self.finish(wait=True) is True

    def begin(
        self, step: int, parts: Mapping[str, Part], value: float | None = None, *, snapshots: bool = True
    ) -> bool:
        """Take down a checkpoint of `step` and write it in the background; whether it is on its way now.

        Arguments and failures as of `save`. Training goes on, and `finish` is called until it has answered: only one
        checkpoint is on its way at a time. Without `snapshots` the parts write their files before this returns.
        """
        assert self._writing is None, "finish the checkpoint before, first"
        temporary = self.folder / f"{TEMPORARY}step-{step:08d}"
        writes: list[Callable[[], None]] = []
        try:
            on_first_rank(self._ranks, lambda: self._prepare(temporary, parts), self._save_reason)
            everywhere(self._ranks, lambda: take_parts(temporary, parts, writes, snapshots), self._save_reason)
        except RankFailures as failures:
            self._give_up(step, temporary, failures)
            return False
        write = partial(self._write_mine, temporary, writes)
        self._writing = Writing(step, temporary, tuple(parts), value, write)
        return True

    def finish(self, *, wait: bool) -> bool | None:
        """Complete the checkpoint that is on its way: True if it is one now, False if it was given up.

        None if there is none, or, without `wait`, if a rank is still writing. A failure counts as one of `save`. Old
        checkpoints are deleted in a thread; with `wait` they are when this returns.
        """
        outcome = self._finish(wait)
        if wait:
            self._tidied()
        return outcome

    def _finish(self, wait: bool) -> bool | None:
        writing = self._writing
        if writing is None or not (wait or all(self._ranks.gather(writing.done))):
            return None
        self._writing = None
        try:
            name = self._commit(writing)
        except RankFailures as failures:
            self._give_up(writing.step, writing.temporary, failures)
            return False
        self._failed_saves = 0
        if self._ranks.rank == 0:
            self._tidying = BackgroundCall(TIDY_THREAD_NAME, partial(self._disk.tidy, name))
        return True

    def abandon(self) -> None:
        """Let what is on its way stay half-written. Not collective: for a rank that goes on no further."""
        if self._writing is not None:
            self._writing.abandon()
            self._writing = None
        if self._tidying is not None:
            self._tidying.wait(ABANDON_SECONDS)
            self._tidying = None

    def latest_complete(self) -> CheckpointInfo | None:
        """The newest checkpoint that verifies, or None if there never was one. Collective; deletes nothing.

        Each rank reads its own files. A checkpoint passed over is named in a warning with the reason. CheckpointError
        if there are checkpoints but none verifies, or somebody else could have written them.
        """
        try:
            self._tidied()
            return newest_that_verifies(self._disk, self._ranks, self._load_reason, self._warn)
        except RankFailures as failures:
            raise _same_error(failures) from failures

    def resume(self, parts: Mapping[str, Part]) -> int | None:
        """Load the newest complete checkpoint into `parts` on all ranks; its step, or None for a fresh start.

        Collective. Also removes what a killed run left half-written or half-deleted. CheckpointError if the
        checkpoint is of another run, of another number of ranks (unless `resize`), has other parts, or a part cannot
        take it up.
        """
        try:
            on_first_rank(self._ranks, self._disk.remove_leftovers)
            info = self.latest_complete()
            if info is None:
                return None
            refuse_other_run(info, self.identity, self._ranks.world_size, self._resize)
            refuse_other_parts(info, parts)
            self._refuse_hostile(info)
            load = each_part(parts, lambda name, part: part.load(info.folder / name))
            everywhere(self._ranks, load, self._load_reason)
        except RankFailures as failures:
            raise CheckpointError(f"The checkpoint in {self.folder} could not be loaded: {failures}") from failures
        return info.step

    def _commit(self, writing: Writing) -> str:
        """Every line waits for all ranks, and ends on all of them if it failed on one."""
        digests = everywhere(self._ranks, writing.result, self._save_reason)
        facts = {name: fact for of_rank in digests for name, fact in of_rank.items()}
        value = writing.value if writing.value is not None and math.isfinite(writing.value) else None
        manifest = Manifest(writing.step, self._ranks.world_size, self.identity, writing.parts, facts, value)
        return on_first_rank(self._ranks, lambda: self._disk.commit(writing.temporary, manifest), self._save_reason)

    def _write_mine(
        self, temporary: Path, writes: Sequence[Callable[[], None]], go_on: Callable[[], None]
    ) -> dict[str, FileFacts]:
        for write in writes:
            go_on()
            write()
        fault_point("after_parts")
        rank, ranks = self._ranks.rank, self._ranks.world_size
        mine = list_files(temporary, lambda name: writer_of(name, ranks) == rank)
        facts = {}
        for name, path in mine.items():
            go_on()
            facts[name] = digest_written(path)
        if rank == 0:
            self._first()
        return facts

    def _prepare(self, temporary: Path, parts: Mapping[str, Part]) -> None:
        self._tidied()  # its space is needed
        self._disk.prepare(temporary, parts)

    def _tidied(self) -> None:
        """Wait for the deletion of old checkpoints, if there is one, and tell what went wrong."""
        tidying, self._tidying = self._tidying, None
        if tidying is not None and (trouble := tidying.result()):
            self._warn(trouble)

    def _give_up(self, step: int, temporary: Path, failures: RankFailures) -> None:
        if self._ranks.rank == 0:
            remove_tree(temporary)
        self._count_failure(step, failures)

    def _count_failure(self, step: int, failures: RankFailures) -> None:
        self._failed_saves += 1
        count = f"failure {self._failed_saves} of {self._max_failed_saves} in a row"
        if self._failed_saves >= self._max_failed_saves:
            raise CheckpointError(
                f"Checkpoint of step {step} could not be written in {self.folder} ({count}): {failures}. Training on "
                "would risk everything since the last complete one. Free space or repair the disk, then start the "
                "same command again: it continues from there."
            )
        if self._ranks.rank == 0:
            self._warn(
                f"Checkpoint of step {step} was not written ({count}): {failures}. Earlier checkpoints are kept, "
                "training goes on, the next save tries again."
            )

    def _refuse_hostile(self, info: CheckpointInfo) -> None:
        allowed = self._allowed_globals
        if allowed is None:
            return
        own = files_of(info.files, self._ranks.rank, self._ranks.world_size)
        try:
            everywhere(self._ranks, lambda: scan_pickles(info.folder, allowed, own), self._load_reason)
        except RankFailures as failures:
            raise _same_error(failures) from failures

    def _save_reason(self, error: Exception) -> str:
        if isinstance(error, PartFailed):
            return f"part {error.name}: {self._save_reason(error.error)}"
        return write_failure(error, self.folder)

    def _load_reason(self, error: Exception) -> str:
        if isinstance(error, PartFailed):
            return f"part {error.name}: {self._load_reason(error.error)}"
        if isinstance(error, RefusedCheckpoint):
            return Refusal(str(error))
        return str(error) if isinstance(error, CheckpointError) else plain_reason(error)


def _same_error(failures: RankFailures) -> CheckpointError:
    """What the rank that failed raised, on every rank."""
    reason = next(iter(failures.reasons.values()))
    return RefusedCheckpoint(reason) if isinstance(reason, Refusal) else CheckpointError(reason)
