"""A thread that writes one checkpoint of this rank while training goes on. It never talks to other ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from distill_engine.checkpoint.manifest import FileFacts

THREAD_NAME = "checkpoint-writer"
# A rank that has failed should end soon, and a disk that hangs must not keep it.
ABANDON_SECONDS = 30.0


class _Abandoned(Exception):
    """Nobody wants the checkpoint any more."""


class Writing:
    """One checkpoint on its way to the disk, from construction until `result` or `abandon`."""

    def __init__(
        self,
        step: int,
        temporary: Path,
        parts: tuple[str, ...],
        value: float | None,
        write: Callable[[Callable[[], None]], dict[str, FileFacts]],
    ) -> None:
        """`write` writes this rank's files, forces them to the disk and returns their facts; before each file it calls
        what it is given, which raises if it should end."""
        self.step = step
        self.temporary = temporary
        self.parts = parts
        self.value = value
        self._write = write
        self._facts: dict[str, FileFacts] = {}
        self._error: Exception | None = None
        self._abandoned = threading.Event()
        # A daemon: a process that has failed must not be kept alive by what it was writing.
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether `result` would answer at once."""
        return not self._thread.is_alive()

    def result(self) -> dict[str, FileFacts]:
        """Wait for the end; facts of the files, or the error that writing them met."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._facts

    def abandon(self, seconds: float = ABANDON_SECONDS) -> None:
        """Write no further file, and wait a while for the one that is being written.

        A process that ends with a thread inside torch.save is aborted: its own exit code would be lost. Neither may
        a later process find this one still writing.
        """
        self._abandoned.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._facts = self._write(self._go_on)
        except Exception as error:  # raised in the thread that asks for the result, where all ranks agree on it
            self._error = error

    def _go_on(self) -> None:
        if self._abandoned.is_set():
            raise _Abandoned
