"""Programs that share a machine by turns: while one runs, the others are stopped, so that whatever else goes on there
slows all of them alike. Needs Linux, or another system with SIGSTOP.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from runs import RunFailedError

_LOOK = 0.02  # seconds between two looks at a log


@dataclass(frozen=True)
class Mark:
    """A line of a program's log: `seconds` of the program's own turns and of its processors when it came."""

    kind: str
    step: int
    ppl: float | None
    seconds: float
    cpu_seconds: float


@dataclass
class Program:
    """One training run that takes its turns.

    log   a file of JSON lines, which may not exist yet
    read  (kind, step, ppl) of a line, or None for one that says nothing of steps; kind is `train` after a step, or
          `valid` after a validation, which has a ppl
    """

    name: str
    command: Sequence[str]
    log: Path
    read: Callable[[Mapping[str, Any]], tuple[str, int, float | None] | None]
    environment: Mapping[str, str]
    output: Path
    marks: list[Mark] = field(default_factory=list)

    def start(self) -> None:
        """In a session of its own; it stands still until its first turn."""
        with self.output.open("w", encoding="utf-8") as said:
            self._process = subprocess.Popen(
                list(self.command), stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=os.environ | dict(self.environment), start_new_session=True,
            )  # fmt: skip
        self._signal(signal.SIGSTOP)
        self._seconds = 0.0
        self._read = 0

    @property
    def running(self) -> bool:
        """Whether it has not ended. Raises RunFailedError, with what it said last, if it failed."""
        code = self._process.poll()
        if code not in (None, 0):
            last = "\n".join(self.output.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
            raise RunFailedError(f"{self.name} ended with code {code}\n{last}")
        return code is None

    def turn(self, seconds: float) -> None:
        """Let it run for a while, or to its end."""
        began, before = time.monotonic(), self._seconds
        self._signal(signal.SIGCONT)
        while self.running and time.monotonic() - began < seconds:
            time.sleep(_LOOK)
            self._seconds = before + time.monotonic() - began
            self._look()
        self._signal(signal.SIGSTOP)
        self._seconds = before + time.monotonic() - began
        self._look()

    def kill(self) -> None:
        """Wherever it is."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(self._process.pid, number)

    def _look(self) -> None:
        """Take note of new whole lines of the log."""
        if not self.log.is_file() or self.log.stat().st_size == self._read:
            return
        with self.log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        cpu = self._cpu_seconds()
        for line in whole.splitlines():
            found = self.read(json.loads(line))
            if found is not None:
                self.marks.append(Mark(*found, seconds=self._seconds, cpu_seconds=cpu))

    def _cpu_seconds(self) -> float:
        """Of the program and all its children, ended ones too."""
        try:
            own = psutil.Process(self._process.pid)
            each = [own.cpu_times(), *(child.cpu_times() for child in own.children(recursive=True))]
        except psutil.NoSuchProcess:
            return self.marks[-1].cpu_seconds if self.marks else 0.0
        return sum(times.user + times.system for times in each) + each[0].children_user + each[0].children_system


def take_turns(programs: Sequence[Program], seconds: float) -> None:
    """Run all of them to their ends, `seconds` at a time. Raises RunFailedError if one fails; the others then end."""
    try:
        for program in programs:
            program.start()
        while any(running := [program for program in programs if program.running]):
            for program in running:
                program.turn(seconds)
    finally:
        for program in programs:
            if hasattr(program, "_process"):
                program.kill()


@dataclass(frozen=True)
class Course:
    """What became of a run, in `seconds` or `cpu_seconds` of its own turns.

    per_step  median over pieces of the log between two `train` lines, none with a validation in it
    reached   by step of a validation: its ppl, and the time from the beginning of the first step
    """

    per_step: float
    reached: Mapping[int, tuple[float, float]]

    def time_to(self, ppl: float) -> float | None:
        """Until a perplexity was reached, between two validations on a straight line of its logarithm; None: never."""
        before: tuple[float, float] | None = None
        for value, at in self.reached.values():
            if value <= ppl:
                if before is None or value == before[0]:
                    return at
                share = math.log(before[0] / ppl) / math.log(before[0] / value)
                return before[1] + share * (at - before[1])
            before = (value, at)
        return None


def course(marks: Sequence[Mark], clock: str) -> Course:
    """From a program's marks, `clock` being `seconds` or `cpu_seconds`. Raises ValueError with fewer than three."""
    trained = [mark for mark in marks if mark.kind == "train"]
    disturbed = {mark.step for mark in marks if mark.kind == "valid"}
    pieces = [
        (getattr(after, clock) - getattr(before, clock)) / (after.step - before.step)
        for before, after in pairwise(trained)
        if before.step not in disturbed and after.step > before.step
    ]
    if not pieces:
        raise ValueError(f"{len(trained)} lines of training: too few for the time of a step.")
    per_step = statistics.median(pieces)
    begin = getattr(trained[0], clock) - trained[0].step * per_step
    reached = {mark.step: (mark.ppl, getattr(mark, clock) - begin) for mark in marks if mark.ppl is not None}
    return Course(per_step, reached)
