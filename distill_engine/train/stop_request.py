"""A signal asks the run to stop: the handler only sets a flag, the loop acts on it between steps."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Set by the first signal. The second one has its default effect, so an impatient user is obeyed."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self, signals: Iterable[signal.Signals] = STOP_SIGNALS) -> None:
        """Install the handler; main thread only."""
        for number in signals:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)
