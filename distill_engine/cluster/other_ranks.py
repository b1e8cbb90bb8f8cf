"""Ranks that share work through a folder, without a process group: each says that it lives, or why it has given up, and
who waits for the parts of others hears of it. No torch.

A launcher may end all ranks when one has died (torchrun, deepspeed, srun --kill-on-bad-exit); plain srun does not, and
a rank that is killed (no memory, its node gone) leaves no word. So each moves the time of a file of its own now and
then. All times are the file system's, of which the nodes' clocks need to know nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import psutil

from distill_engine.cluster.exit_codes import may_pass
from distill_engine.cluster.facts import ClusterFacts
from distill_engine.cluster.files import replace_text
from distill_engine.cluster.ranks import first_of

BEAT_SECONDS = 2.0
SILENT_SECONDS = 120.0  # a busy file system may keep a rank from telling for so long
ABSENT_SECONDS = 900.0  # until it has imported (without `ranks_of_step`: and loaded) everything, after another has
_MAY_PASS = "may pass"  # first line of a mark
_NAMED = 8  # ranks in one message


class OthersFailedError(ValueError):
    """Parts of other ranks will not come; `may_pass` as for what they said, True where they were killed."""

    def __init__(self, text: str, may_pass: bool) -> None:
        super().__init__(text)
        self.may_pass = may_pass


class OtherRanks:
    """A context manager around a rank's own work and its waiting. `folder` belongs to what is shared."""

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self._folder, self._rank, self._world_size = folder, rank, world_size
        self._alive = self._file(rank)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="alive", daemon=True)

    def __enter__(self) -> OtherRanks:
        """Raises OSError where the folder cannot be made or written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._failed.unlink(missing_ok=True)
        if self._world_size > 1:
            self._alive.touch()
            self._begun = _moment(self._alive)
            # not `begun`: another rank may have come and failed while this one was still loading
            self._born = self._begun - (time.time() - psutil.Process().create_time())
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Leave word of an error."""
        self._left.set()
        if self._world_size > 1:
            self._thread.join()
        if isinstance(error, Exception):
            with suppress(OSError):  # the disk may be what failed
                # in one step: whoever read half of it would take its first line for another
                replace_text(self._failed, f"{_MAY_PASS if may_pass(error) else ''}\n{type(error).__name__}: {error}")

    def require(self, owing: Iterable[int], missing: str) -> None:
        """Raises OthersFailedError where parts will not come: a rank has given up since this process was born, or one
        of those that owe parts (`owing`) has died. `missing`: what is not there yet, in words."""
        if self._world_size == 1:
            return
        marks = [one for one in sorted(self._folder.glob("rank-*.failed")) if _moment(one) >= self._born]
        if marks:
            said = [mark.read_text(encoding="utf-8").partition("\n") for mark in marks]
            text = "; ".join(f"{mark.stem}: {words}" for mark, (_, _, words) in zip(marks, said, strict=True))
            raise OthersFailedError(f"{missing} will not come: {text}", all(first == _MAY_PASS for first, _, _ in said))
        now = _moment(self._alive)
        heard = {rank: _moment(self._file(rank)) for rank in sorted(set(owing) - {self._rank})}
        silent = [rank for rank, then in heard.items() if self._born <= then < now - SILENT_SECONDS]
        absent = [rank for rank, then in heard.items() if then < self._born and now - self._begun > ABSENT_SECONDS]
        for gone, what in (
            (silent, f"gave no sign of life for {SILENT_SECONDS:g} s. Killed, without memory, or the node is gone"),
            (absent, f"did not come within {ABSENT_SECONDS:g} s. Failed while it loaded, killed, or never started"),
        ):
            if gone:
                ranks = f"{'rank' if len(gone) == 1 else 'ranks'} {first_of(gone, _NAMED)} of {self._world_size}"
                raise OthersFailedError(f"{missing} will not come: {ranks} {what}: its log may tell", True)

    def _beat(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            with suppress(OSError):
                self._alive.touch()

    @property
    def _failed(self) -> Path:
        return self._alive.with_suffix(".failed")

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.alive"


@contextmanager
def ranks_of_step(folder: Path, facts: ClusterFacts) -> Iterator[OtherRanks | None]:
    """The ranks of a step of srun, to be entered before anything is loaded: who fails or dies meanwhile is heard of.
    `folder`: for files of all steps.

    None for one process, and under other launchers: they end all ranks when one has failed, and do not say what tells
    one start from another.
    """
    if facts.world_size == 1 or facts.launcher != "srun":
        yield None
        return
    with OtherRanks(folder / facts.job, facts.rank, facts.world_size) as others:
        yield others


def _moment(file: Path) -> float:
    """When it was last touched; 0 for one that is not there."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
