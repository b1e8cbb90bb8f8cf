"""Ends a process that makes no progress, and says where every one of its threads stands.

A rank that waits for ever, for a disk, for data or for another rank, would burn the allocation until its time limit.
The loop beats at everything it begins; a thread of its own counts the time without a beat. When that is too long, the
stacks of this process are written down and it ends with the code that asks to be started again. All ranks of a job
find out about the same time, since they wait for the one that hangs.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from distill_engine.train.behind import leave_position, name_behind, position_file, read_positions

POLLS = 20  # looks per hang_seconds
LONGEST_POLL_SECONDS = 10.0
# The disk that the run hangs on may be the one that takes the stacks.
REPORT_SECONDS = 15.0
# Launchers end all ranks when the first one has ended. The others, which stopped waiting up to a step later, need time
# to notice and to write their own stacks: this share of the limit, within these bounds.
GRACE_SHARE = 0.05
GRACE_SECONDS = (3.0, 60.0)
# How long the others wait until the one that says who is behind has said it: the first to end ends them all.
SAY_SECONDS = 5.0
_HUNG = "[watchdog] hung: "
# Reading and sharding models begins few things, and takes as long as the file system does: the limit is not shorter.
LOADING_SECONDS = 1800.0


class Evidence(Protocol):
    """How far this rank has come in what all ranks do together."""

    def reached(self, *, groups: bool) -> dict[str, Any]:
        """`node`, and `tracks` as behind.py compares them: our own collectives, and with `groups` torch's as well."""

    def flights(self) -> bytes | None:
        """The flight recorder's last collectives, if torch has any."""


class Watchdog:
    """Watches from `with` to its end; without a limit (None) it does nothing.

    Time is counted in its own short looks: a process that is suspended as a whole and goes on later has not hung.
    """

    def __init__(
        self,
        limit_seconds: float | None,
        folder: Path,
        rank: int,
        world_size: int,
        end: Callable[[], None],
        evidence: Evidence | None = None,
    ) -> None:
        """Stacks go to `folder`/rank_<rank>.txt and stderr, how far the rank has come to rank_<rank>.json, torch's last
        collectives to flight_rank_<rank>; `end` then ends the process and does not return."""
        self.loading = False  # while it is set, the limit is at least LOADING_SECONDS
        self._folder, self._rank, self._world_size, self._evidence = folder, rank, world_size, evidence
        self._limit = limit_seconds
        self._file = folder / f"rank_{rank}.txt"
        self._who = f"rank {rank} of {world_size} on {socket.gethostname()} (process {os.getpid()})"
        self._end = end
        shortest, longest = GRACE_SECONDS
        self._grace = min(max(GRACE_SHARE * (limit_seconds or 0.0), shortest), longest)
        self._beats, self._seen, self._idle = 0, 0, 0.0
        self.doing = "starting"
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_resort: TextIO | None = None

    def beat(self, doing: str) -> None:
        """Progress: this is what begins now. Called many times a step, so it only sets two fields."""
        self.doing = doing
        self._beats += 1

    def __enter__(self) -> Watchdog:
        if self._limit is not None:
            self._last_resort = self._open()
            with suppress(OSError):
                position_file(self._folder, self._rank).unlink(missing_ok=True)  # of an earlier hang
            self._thread = threading.Thread(target=self._watch, args=(self._limit,), name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        if self._last_resort is not None:
            faulthandler.cancel_dump_traceback_later()
            with suppress(OSError):
                self._last_resort.close()
                if self._file.stat().st_size == 0:
                    self._file.unlink()
                    self._file.parent.rmdir()

    def tick(self, seconds: float) -> bool:
        """Count `seconds` since the last look; whether this process has hung. False again after a beat."""
        beats = self._beats
        if beats != self._seen:
            self._seen, self._idle = beats, 0.0
            return False
        self._idle += seconds
        return self._idle >= self._limit_now()

    def _limit_now(self) -> float:
        assert self._limit is not None
        return max(self._limit, LOADING_SECONDS) if self.loading else self._limit

    def _watch(self, limit: float) -> None:
        poll = min(limit / POLLS, LONGEST_POLL_SECONDS)
        looked = time.monotonic()
        self._arm_last_resort()
        while not self._stopped.wait(poll):
            now = time.monotonic()
            elapsed, looked = now - looked, now
            self._arm_last_resort()
            if self.tick(min(elapsed, 2 * poll)):
                self._tell_and_end()
                return

    def _arm_last_resort(self) -> None:
        """A hang inside a library that keeps Python's lock stops this thread too; then faulthandler's own thread, which
        needs no lock, writes the stacks and ends the process (with code 1)."""
        if self._last_resort is not None:
            faulthandler.dump_traceback_later(2 * self._limit_now(), exit=True, file=self._last_resort)

    def _tell_and_end(self) -> None:
        if self._last_resort is not None:
            faulthandler.cancel_dump_traceback_later()
        self._within(REPORT_SECONDS, self._report)
        # Also when the main thread has left meanwhile, with whatever error the end of another rank gave it.
        time.sleep(self._grace)
        self._within(REPORT_SECONDS, self._compare)
        self._end()

    @staticmethod
    def _within(seconds: float, action: Callable[[], None]) -> None:
        reporter = threading.Thread(target=action, name="watchdog-report", daemon=True)
        reporter.start()
        reporter.join(seconds)

    def _report(self) -> None:
        head = (
            f"[watchdog] {datetime.now().astimezone().isoformat(timespec='seconds')} {self._who} made no progress for "
            f"{self._idle:.0f} s (stop.hang_seconds: {self._limit:g}) while it was {self.doing}. It ends, to be "
            f"started again; {self._file} has the stacks of its threads.\n"
        )
        for write in (self._to_stderr, self._to_file):
            try:
                write(head)
            except (OSError, ValueError):  # a full disk, a closed terminal: the other place may still take it
                continue
        if self._evidence is not None:
            with suppress(OSError):
                for groups in (False, True):  # the second asks torch, which may wait for a device that hangs
                    position = self._evidence.reached(groups=groups) | {"doing": self.doing}
                    leave_position(self._folder, self._rank, position)
                if flights := self._evidence.flights():
                    (self._folder / f"flight_rank_{self._rank}").write_bytes(flights)

    def _compare(self) -> None:
        """Say which rank keeps the others waiting: on stderr by the first that can, into every rank's file."""
        if self._evidence is None or self._world_size == 1:
            return
        positions = read_positions(self._folder, self._world_size)
        line = f"{_HUNG}{name_behind(positions, self._world_size)}\n"
        first = min(positions, default=self._rank)
        with suppress(OSError, ValueError):
            if self._rank == first:
                sys.stderr.write(line)
                sys.stderr.flush()
            else:
                self._wait_for(self._folder / f"rank_{first}.txt")
        with suppress(OSError), self._file.open("a", encoding="utf-8") as file:
            file.write(line)

    def _wait_for(self, file: Path) -> None:
        """Until the rank whose file it is has said of this hang who is behind. Files keep what was said of earlier
        ones. Raises OSError."""
        said = _times_said(self._file)
        until = time.monotonic() + SAY_SECONDS
        while _times_said(file) <= said and time.monotonic() < until:
            time.sleep(SAY_SECONDS / 100)

    def _to_stderr(self, head: str) -> None:
        sys.stderr.write(head)
        sys.stderr.flush()
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)

    def _to_file(self, head: str) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:  # the stacks of earlier hangs stay
            file.write(head)
            file.flush()
            faulthandler.dump_traceback(file)
            os.fsync(file.fileno())

    def _open(self) -> TextIO | None:
        """The file of the last resort, which cannot open one itself; None where none can be written."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            return self._file.open("a", encoding="utf-8")
        except OSError:
            return None


def _times_said(file: Path) -> int:
    return file.read_text(encoding="utf-8").count(_HUNG) if file.is_file() else 0
