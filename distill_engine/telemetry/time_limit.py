"""Warns when a job's time limit is shorter than what has to fit into it: a start, a step, a validation, a checkpoint.

Such a job is started again and again without ever getting further. It is told at the first moment at which it can be
known: after the first step, validation or checkpoint, and right at the next start, from what was measured before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from distill_engine.telemetry.sinks import CloseStatus, Record

FILE = "logs/durations.json"
_PHASES = {"validating": "a validation", "saving": "a checkpoint"}
_START, _STEP = "the start", "a step"


class TimeLimit:
    """A display among the sinks, so it hears when phases begin and steps end. Nothing outside a job with a limit.

    The longest of each kind counts. What was measured is kept in the run folder, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """The limit comes from SLURM_JOB_START_TIME and SLURM_JOB_END_TIME, in seconds since the epoch."""
        self._file = folder / FILE
        self._say, self._clock = say, clock
        self._begun = _seconds(environment.get("SLURM_JOB_START_TIME", ""))
        end = _seconds(environment.get("SLURM_JOB_END_TIME", ""))
        self._limit = end - self._begun if end and self._begun else 0.0
        self._took = self._read() if self._limit else {}
        self._phase, self._since, self._stepped = "", clock(), False
        self._told = False
        self._warn_if_short()

    def phase(self, name: str) -> None:
        """The phase before it has ended."""
        now = self._clock()
        if self._phase in _PHASES:
            self._measure(_PHASES[self._phase], now - self._since)
        self._phase, self._since = name, now

    def advance(self, step: int, until_validation: str | None, eta_seconds: float | None) -> None:  # noqa: ARG002
        """A step has ended. The first one of a start is counted with it: it compiles and allocates."""
        now = self._clock()
        if not self._stepped and self._begun:
            self._measure(_START, now - self._begun)
        elif self._stepped:
            self._measure(_STEP, now - self._since)
        self._stepped, self._since = True, now

    def message(self, text: str) -> None:
        """Not for this one."""

    def write(self, record: Record) -> None:
        """Not for this one."""

    def close(self, status: CloseStatus) -> None:
        """Nothing is open."""

    def _measure(self, what: str, seconds: float) -> None:
        if not self._limit or seconds <= self._took.get(what, 0.0):
            return
        known = what in self._took and seconds < 1.5 * self._took[what]
        self._took[what] = seconds
        if not known:  # not at every step that is a little longer
            self._file.parent.mkdir(exist_ok=True)
            self._file.write_text(json.dumps(self._took), encoding="utf-8")
        self._warn_if_short()

    def _warn_if_short(self) -> None:
        needed = sum(self._took.values())
        if self._told or not self._limit or needed < self._limit:
            return
        self._told = True
        parts = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in self._took.items())
        self._say(
            f"the time limit of {self._limit:.0f} s is too short: measured so far are {parts}. A start that ends "
            "before its first checkpoint is lost. Ask for more time (sbatch --time) or validate more rarely."
        )

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return {str(what): float(seconds) for what, seconds in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # none yet, or half-written by a kill
            return {}


def _seconds(text: str) -> float:
    return float(text) if text.isdecimal() else 0.0
