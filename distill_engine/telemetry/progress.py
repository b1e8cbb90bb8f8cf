"""The display that a person watches: a calm live picture in a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner

from distill_engine.telemetry.progress_view import ProgressState, picture, train_line, valid_line
from distill_engine.telemetry.sinks import CloseStatus, Record

_REFRESH_PER_SECOND = 2.0


class ProgressSink:
    """Shows phase, steps, losses, perplexities, speed and estimates of one run.

    In a terminal the picture stays at the bottom and changes in place, twice a second; validations and
    messages scroll away above it, and so does what libraries print. Elsewhere (a file, a pipe, TERM=dumb)
    each record is one line, and each phase is named the first time.
    """

    def __init__(
        self,
        title: str,
        total_steps: int | None = None,
        metric: str = "ppl",
    ) -> None:
        self._console = TerminalConsole()
        self._state = ProgressState(title=title, metric=metric, total_steps=total_steps)
        self._started = time.monotonic()
        self._spinner = Spinner("dots", style="cyan")
        self._announced: set[str] = set()
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                console=self._console, get_renderable=self._picture, refresh_per_second=_REFRESH_PER_SECOND
            )
            self._live.start()

    def phase(self, name: str) -> None:
        """What the run does now: starting, training, validating, saving, ..."""
        self._state.phase = name
        if self._live is not None:
            self._live.refresh()
        elif name not in self._announced:
            self._announced.add(name)
            self._line(name)

    def advance(self, step: int, until_validation: str | None = None, eta_seconds: float | None = None) -> None:
        """A step was applied. Costs nothing: the picture is redrawn on its own time."""
        self._state.step = step
        self._state.until_validation = until_validation
        self._state.eta_seconds = eta_seconds

    def write(self, record: Record) -> None:
        """Takes the numbers of a record over; of an event, its text is shown."""
        state = self._state
        state.step = max(state.step, record.step)
        best = record.values.get(f"best/{state.metric}")
        if best is not None:
            state.best = best
        if record.kind == "train":
            state.train = record.values
            if self._live is None:
                self._line(train_line(state, record.seconds))
        elif record.kind == "valid":
            state.valid = record.values
            self._line(valid_line(state))
        elif record.text:
            self._line(record.text)

    def message(self, text: str) -> None:
        """One line for people."""
        self._line(text)

    def close(self, status: CloseStatus) -> None:
        """Leaves the last picture standing and gives the terminal back."""
        self._state.phase = status
        if self._live is None:
            self._line(status)
        else:
            self._live.stop()

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def _picture(self) -> RenderableType:
        return picture(self._state, time.monotonic() - self._started, self._spinner, self._console.height)


class TerminalConsole(Console):
    """Standard output. When its reader goes away (`... | head`) this is an error of the display, not the end."""

    def on_broken_pipe(self) -> NoReturn:
        """Sends what is still printed to nowhere and raises BrokenPipeError; rich would exit the program.

        Without that, Python's own flush at exit would fail and turn a good run's exit code into 120.
        """
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise BrokenPipeError("nobody reads standard output any more")
