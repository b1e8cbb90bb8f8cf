"""Saves what has changed since the last checkpoint, and takes up the newest one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distill_engine.checkpoint.checkpoints import Checkpoints
from distill_engine.checkpoint.parts import JsonPart, Part, RngPart, Stateful, WatchedPart


class Saver:
    """All of a run's state, as parts of a checkpoint. Every method but `changed` is collective."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        student: Part,
        rank: int,
        stateful: Callable[[], Mapping[str, Stateful]],
        begins: Callable[[str], None],
    ) -> None:
        """`stateful`: what else there is, by the name of its part; `begins` hears in a few words what is done."""
        self._checkpoints, self._student, self._rank = checkpoints, student, rank
        self._stateful, self._begins = stateful, begins
        self._unsaved = True

    def changed(self) -> None:
        """The run has gone on since the last checkpoint."""
        self._unsaved = True

    def finish(self, *, wait: bool) -> None:
        """Complete a checkpoint that is being written, if it is on the disk or can be waited for."""
        if wait:
            self._begins("waiting for the checkpoint before to be on the disk")
        self._unsaved |= self._checkpoints.finish(wait=wait) is False

    def due(self) -> bool:
        """Whether there is anything to save, once the checkpoint before is complete."""
        self.finish(wait=True)
        return self._unsaved

    def save(self, step: int, value: float | None, *, background: bool) -> None:
        """Write a checkpoint; `value` is the deciding metric at this step."""
        self._begins(f"saving the checkpoint of step {step}")
        save = self._checkpoints.begin if background else self._checkpoints.save
        if save(step, self.parts(), value):
            self._unsaved = False
        self._begins("going on after a checkpoint")

    def resume(self) -> int | None:
        """The step of the checkpoint that was taken up, if there is one."""
        step = self._checkpoints.resume(self.parts())
        self._unsaved = step is None
        return step

    def parts(self) -> dict[str, Part]:
        """By name: a folder of each checkpoint."""
        parts: dict[str, Part] = {"student": self._student, "rng": RngPart(self._rank)}
        parts |= {name: JsonPart(holder, self._rank) for name, holder in self._stateful().items()}
        return {name: WatchedPart(part, name, self._begins) for name, part in parts.items()}
