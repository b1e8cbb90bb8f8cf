"""A sink with a thread of its own: a service that starts slowly, or answers slowly, holds no step up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from distill_engine.telemetry.sinks import KEPT_RECORDS, CloseStatus, Persistent, Record, Sink

CLOSE_SECONDS = 180.0  # the bounds of the services themselves are shorter


class BackgroundSink:
    """Makes a sink at the first record, after the first step that is, and drives it; both in a thread.

    The sink must fill its own gaps (see Persistent): what its queue cannot hold is passed over.
    """

    def __init__(
        self, make: Callable[[], Sink], warn: Callable[[str], None], close_seconds: float = CLOSE_SECONDS
    ) -> None:
        self._make, self._warn, self._close_seconds = make, warn, close_seconds
        self._queue: queue.Queue[Record | CloseStatus] = queue.Queue(KEPT_RECORDS)
        self._thread: threading.Thread | None = None

    def write(self, record: Record) -> None:
        """Returns at once."""
        self._start()
        with suppress(queue.Full):
            self._queue.put_nowait(record)

    def close(self, status: CloseStatus) -> None:
        """Waits until everything is written, for a bounded time. A run that finishes without a record of its own makes
        the sink now, to fill the gaps of earlier starts."""
        if self._thread is None and status != "finished":
            return
        thread = self._start()
        with suppress(queue.Full):
            self._queue.put(status, timeout=self._close_seconds)
        thread.join(self._close_seconds)
        if thread.is_alive():
            self._warn(f"a dashboard has not answered for {self._close_seconds:.0f} s; what it lacks stays here.")

    def _start(self) -> threading.Thread:
        if self._thread is None:
            self._thread = threading.Thread(target=self._drive, name="dashboard", daemon=True)
            self._thread.start()
        return self._thread

    def _drive(self) -> None:
        try:
            sink = Persistent(self._make(), self._warn, heals=True)
        except Exception as error:
            self._warn(f"a dashboard cannot be used: {type(error).__name__}: {error}. Training goes on.")
            return
        while isinstance(item := self._queue.get(), Record):
            sink.write(item)
        sink.close(item)
