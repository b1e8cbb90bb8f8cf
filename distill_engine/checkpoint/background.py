"""Work in a thread of its own while training goes on. It never talks to other ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from distill_engine.checkpoint.manifest import FileFacts

T = TypeVar("T")
THREAD_NAME = "checkpoint-writer"
# A rank that has failed should end soon, and a disk that hangs must not keep it.
ABANDON_SECONDS = 30.0


class BackgroundCall(Generic[T]):
    """One call in a thread of its own, from construction on."""

    def __init__(self, name: str, call: Callable[[], T]) -> None:
        """`name` is the thread's."""
        self._call = call
        self._value: list[T] = []
        self._error: Exception | None = None
        # A daemon: a process that has failed must not be kept alive by what it was writing.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether `result` would answer at once."""
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Until its end, or no longer than that."""
        self._thread.join(seconds)

    def result(self) -> T:
        """Wait for the end; what the call returned, or the error that it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value[0]

    def _run(self) -> None:
        try:
            self._value.append(self._call())
        except Exception as error:  # raised in the thread that asks for the result
            self._error = error


class _Abandoned(Exception):
    """Nobody wants the checkpoint any more."""


class Writing(BackgroundCall[dict[str, FileFacts]]):
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
        self._abandoned = threading.Event()
        super().__init__(THREAD_NAME, lambda: write(self._go_on))

    def abandon(self, seconds: float = ABANDON_SECONDS) -> None:
        """Write no further file, and wait a while for the one that is being written.

        A process that ends with a thread inside torch.save is aborted: its own exit code would be lost. Neither may
        a later process find this one still writing.
        """
        self._abandoned.set()
        self.wait(seconds)

    def _go_on(self) -> None:
        if self._abandoned.is_set():
            raise _Abandoned
