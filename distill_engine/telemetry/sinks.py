"""Where measurements go: the record, what a sink must offer, and the group that survives its sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from distill_engine.telemetry.metrics import describe

RecordKind = Literal["train", "valid", "event", "samples"]
CloseStatus = Literal["finished", "stopped", "failed"]


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
    """A place that records go to. Called on rank 0 only, by SinkGroup, which handles what it raises."""

    def write(self, record: Record) -> None:
        """Takes one record; any exception takes the sink out of the run."""

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


class SinkGroup:
    """All sinks of a run as one. A sink that raises is closed, reported once and left out; the run goes on.

    `phase`, `advance` and `message` reach the sinks that are displays. Without sinks (ranks other than 0)
    every call does nothing.
    """

    def __init__(self, sinks: Sequence[Sink], warn: Callable[[str], None]) -> None:
        self._sinks = list(sinks)
        self._warn = warn

    def write(self, record: Record) -> None:
        """Hands the record to every sink.

        Raises UnknownMetricError for a name outside the registry: that is a mistake in the program, found by
        its tests, not a failing sink.
        """
        for name in record.values:
            describe(name)
        self._each(lambda sink: sink.write(record))

    def record(self, kind: RecordKind, step: int, seconds: float, values: dict[str, float], text: str = "") -> None:
        """Writes a record made of these values."""
        self.write(Record(kind, step, seconds, values, text))

    def samples(self, step: int, seconds: float, rows: Sequence[Mapping[str, str]]) -> None:
        """Writes a table of sample replies."""
        self.write(Record("samples", step, seconds, rows=tuple(rows)))

    def rewind(self, step: int) -> None:
        """Tells the sinks that can forget that the run goes on from its checkpoint at `step`."""
        self._each(lambda sink: sink.rewind(step) if isinstance(sink, Rewindable) else None)

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
        """Closes every sink that still works; a second call does nothing."""
        self._each(lambda sink: sink.close(status))
        self._sinks.clear()

    def _each_display(self, call: Callable[[Display], None]) -> None:
        self._each(lambda sink: call(sink) if isinstance(sink, Display) else None)

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                # Out of the list first: `warn` may itself write to a display of this group.
                self._sinks.remove(sink)
                with suppress(Exception):
                    sink.close("failed")
                self._warn(
                    f"{type(sink).__name__} failed and gets no more records of this run: "
                    f"{type(error).__name__}: {error}. Training goes on."
                )
