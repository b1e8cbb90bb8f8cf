"""Where measurements go: the record, what a sink must offer, and the group that outlives its sinks' failures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from distill_engine.telemetry.metrics import describe

RecordKind = Literal["train", "valid", "event", "samples"]
CloseStatus = Literal["finished", "stopped", "failed"]

GAP = "run/missing_records"
KEPT_RECORDS = 10_000  # of a few kilobytes each; few runs log as many in a day
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
LAST_TRIES, LAST_PAUSE_SECONDS = 6, 0.5  # when a run ends: for a disk that is full for a moment


@dataclass(frozen=True)
class Record:
    """What is known at one moment of a run.

    step     applied optimizer steps
    seconds  training time so far, restarts included
    values   metric name -> value; names are registered in metrics.py
    text     a sentence for people, mostly of events
    rows     a table of texts, column -> text, the same columns in every row: what `samples` records are about
    """

    kind: RecordKind
    step: int
    seconds: float
    values: dict[str, float] = field(default_factory=dict)
    text: str = ""
    rows: tuple[Mapping[str, str], ...] = ()


class Sink(Protocol):
    """A place that records go to. Called on rank 0 only, by Persistent, which handles what it raises."""

    def write(self, record: Record) -> None:
        """Takes one record, as a whole; after an exception it is given the same record again."""

    def close(self, status: CloseStatus) -> None:
        """Says goodbye: 'finished' as planned, 'stopped' to be resumed, 'failed' by an error."""


@runtime_checkable
class Display(Protocol):
    """A sink that a person watches, and that therefore also hears about what is not measured."""

    def phase(self, name: str) -> None:
        """What the run does now: starting, training, validating, saving, ..."""

    def advance(self, step: int, until_validation: str | None, eta_seconds: float | None) -> None:
        """A step was applied; texts and estimates as far as they are known."""

    def message(self, text: str) -> None:
        """One line for people."""


@runtime_checkable
class Rewindable(Protocol):
    """A sink whose history can be made that of a run which stopped earlier."""

    def rewind(self, step: int) -> None:
        """Forgets every record of a later step."""


class Persistent:
    """Hands everything to one sink, in order. What fails is kept and tried again at a later call, after a pause that
    doubles; a display that fails is given up. The first failure, its end and what is lost are said by `warn`, once.
    No call raises.

    heals  the sink itself fills the gaps of what was not kept (W&B from metrics.jsonl), so nothing is lost to it
    """

    def __init__(
        self,
        sink: Sink,
        warn: Callable[[str], None],
        *,
        heals: bool = False,
        keep: int = KEPT_RECORDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sink, self._warn, self._heals, self._keep = sink, warn, heals, keep
        self._clock, self._sleep = clock, sleep
        self._name = type(sink).__name__
        self._rewind: int | None = None  # to be done before anything is written
        self._waiting: deque[Record] = deque()
        self._dropped: list[int] = []  # steps of records that will never be written
        self._failing, self._pause, self._next_try = "", FIRST_PAUSE_SECONDS, 0.0
        self._gone = False

    def write(self, record: Record) -> None:
        """Writes the record, and before it what waits; or keeps it."""
        if self._gone:
            return
        self._waiting.append(record)
        self._deliver_when_due()
        while len(self._waiting) > self._keep:
            self._dropped.append(self._waiting.popleft().step)

    def rewind(self, step: int) -> None:
        """See Rewindable."""
        if isinstance(self._sink, Rewindable):
            self._rewind = step
            self._deliver_when_due()

    def show(self, call: Callable[[Display], None]) -> None:
        """Calls the sink if it is a display that works."""
        sink = self._sink
        if isinstance(sink, Display) and not self._gone:
            self._try(lambda: call(sink))

    def close(self, status: CloseStatus) -> None:
        """Tries what waits a last few times, closes the sink, and says what it lacks."""
        if self._gone:
            return
        tries = LAST_TRIES
        if self._heals and self._failing and status == "stopped":
            tries = 0  # a job that is being ended has no time; its next start fills the gap
        while tries and (self._waiting or self._rewind is not None) and not self._deliver():
            tries -= 1
            self._sleep(LAST_PAUSE_SECONDS)
        missing = [*self._dropped, *(record.step for record in self._waiting)]
        if missing and not self._heals:
            self._say(f"{self._name} gave up ({self._failing}): {_records(missing)} missing there.")
        try:
            self._sink.close(status)
        except Exception as error:
            self._say(f"{self._name} could not be closed: {type(error).__name__}: {error}.")

    # ---- one try -------------------------------------------------------------------------------------------------

    def _due(self) -> bool:
        return not self._failing or self._clock() >= self._next_try

    def _deliver_when_due(self) -> None:
        if self._due():
            self._deliver()

    def _deliver(self) -> bool:
        """Everything that waits, oldest first; whether all of it was taken."""
        sink, recovered = self._sink, len(self._waiting)
        if self._rewind is not None and isinstance(sink, Rewindable):
            step = self._rewind
            if not self._try(lambda: sink.rewind(step)):
                return False
            self._rewind = None
        if self._dropped and not self._heals:
            if not self._try(lambda: sink.write(self._gap())):
                return False
            self._say(f"{self._name} lacks {_records(self._dropped)}: more had to wait than are kept.")
        self._dropped = []
        while self._waiting:
            if not self._try(lambda: sink.write(self._waiting[0])):
                return False
            self._waiting.popleft()
        self._works_again(recovered)
        return True

    def _gap(self) -> Record:
        """What stands in the place of lost records."""
        after, lost = self._waiting[0], self._dropped
        return Record("event", after.step, after.seconds, {GAP: float(len(lost))}, f"{_records(lost)} missing here")

    def _try(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:
            before, self._failing = self._failing, f"{type(error).__name__}: {error}"
            if isinstance(self._sink, Display):
                self._give_up()
                return False
            self._next_try = self._clock() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            if not before:
                self._say(
                    f"{self._name} failed: {self._failing}. Its records are kept and tried again; training goes on."
                )
            return False
        return True

    def _give_up(self) -> None:
        """Nobody watches any more, and what is shown late is of no use."""
        self._gone = True
        self._waiting.clear()
        with suppress(Exception):
            self._sink.close("failed")
        self._say(f"{self._name} failed and gets no more records of this run: {self._failing}. Training goes on.")

    def _works_again(self, recovered: int = 0) -> None:
        if self._failing:
            self._failing, self._pause = "", FIRST_PAUSE_SECONDS
            self._say(f"{self._name} works again; records that had to wait and are written now: {recovered}.")

    def _say(self, text: str) -> None:
        with suppress(Exception):  # it may be shown on the very display that fails
            self._warn(text)


def _records(steps: Sequence[int]) -> str:
    """Of one record or more: how many, and of which steps."""
    first, last = min(steps), max(steps)
    which = f"step {first}" if first == last else f"steps {first} to {last}"
    return f"{len(steps)} record{'s' if len(steps) > 1 else ''} ({which})"


class SinkGroup:
    """All sinks of a run as one. None of them can end the run: see Persistent.

    `phase`, `advance` and `message` reach the sinks that are displays. Without sinks (ranks other than 0)
    every call does nothing.
    """

    def __init__(self, sinks: Sequence[Sink], warn: Callable[[str], None]) -> None:
        self._sinks = [Persistent(sink, warn) for sink in sinks]

    def write(self, record: Record) -> None:
        """Hands the record to every sink.

        Raises UnknownMetricError for a name outside the registry: that is a mistake in the program, found by
        its tests, not a failing sink.
        """
        for name in record.values:
            describe(name)
        for sink in self._sinks:
            sink.write(record)

    def record(self, kind: RecordKind, step: int, seconds: float, values: dict[str, float], text: str = "") -> None:
        """Writes a record made of these values."""
        self.write(Record(kind, step, seconds, values, text))

    def samples(self, step: int, seconds: float, rows: Sequence[Mapping[str, str]]) -> None:
        """Writes a table of sample replies."""
        self.write(Record("samples", step, seconds, rows=tuple(rows)))

    def rewind(self, step: int) -> None:
        """Tells the sinks that can forget that the run goes on from its checkpoint at `step`."""
        for sink in self._sinks:
            sink.rewind(step)

    def phase(self, name: str) -> None:
        """See Display.phase."""
        self._each_display(lambda display: display.phase(name))

    def advance(self, step: int, until_validation: str | None = None, eta_seconds: float | None = None) -> None:
        """See Display.advance."""
        self._each_display(lambda display: display.advance(step, until_validation, eta_seconds))

    def message(self, text: str) -> None:
        """See Display.message."""
        self._each_display(lambda display: display.message(text))

    def close(self, status: CloseStatus) -> None:
        """Closes every sink; a second call does nothing."""
        sinks, self._sinks = self._sinks, []
        for sink in sinks:
            sink.close(status)

    def _each_display(self, call: Callable[[Display], None]) -> None:
        for sink in self._sinks:
            sink.show(call)
