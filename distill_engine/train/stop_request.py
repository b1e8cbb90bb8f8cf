"""A signal asks the run to stop: the handler only sets a flag, the loop acts on it between steps."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# Launchers and Slurm repeat what they send while the step in hand and its checkpoint go on: as long as a rank whose
# launcher is gone may take for them.
REPEAT_SECONDS = 60.0


class StopRequest:
    """Set by the first signal, or by `ask`.

    A second Ctrl-C (SIGINT) is an impatient person's and has its default effect. Other signals come from machinery:
    the same one again does nothing for `REPEAT_SECONDS`, and has its default effect after that.
    """

    def __init__(self, end_early: Callable[[], None] | None = None) -> None:
        """`end_early` ends the process, and is called instead of waiting for a step until `begin`."""
        self.requested = False
        self._end_early = end_early
        self._first: dict[int, float] = {}

    def listen(self, signals: Iterable[signal.Signals] = STOP_SIGNALS) -> None:
        """Install the handler; main thread only. What is ignored already (nohup) stays so."""
        for number in signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def begin(self) -> None:
        """Training begins: from now on a request waits for the end of the step."""
        self._end_early = None

    def ask(self) -> None:
        """Ask for the stop without a signal; from any thread."""
        self.requested = True
        if self._end_early is not None:
            self._end_early()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # also while the process is inside a library
        elif now - self._first.setdefault(number, now) > REPEAT_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.ask()
