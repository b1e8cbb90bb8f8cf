"""Decisions that follow from validation numbers and progress: pure state machines.

No torch, no clock, no files: each gets plain numbers, answers, and keeps a state of JSON values. Feeding any prefix,
saving the state, and going on from it gives the same answers as never having stopped.

A number that is not finite (NaN, inf) is a bad validation: it never counts as an improvement.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, NamedTuple

from distill_engine.metrics.direction import Direction, at_least_as_good, known_direction

State = dict[str, Any]

# Epochs are fractions of examples: 0.3 - 0.2 < 0.1 in floating point must not delay a validation by a step.
EPOCH_TOLERANCE = 1e-9


class StopReason(str, Enum):
    """Why validation numbers end a run."""

    OUT_OF_PATIENCE = "out_of_patience"
    TARGET_REACHED = "target_reached"


class KeepBest:
    """Remembers the best value so far. Better is strict: an equal value is not a new best."""

    def __init__(self, direction: Direction) -> None:
        self.direction = known_direction(direction)
        self.best: float | None = None

    def observe(self, value: float) -> bool:
        """Whether `value` is a new best."""
        if not math.isfinite(value):
            return False
        if self.best is not None and at_least_as_good(self.best, value, self.direction):
            return False
        self.best = value
        return True

    def forget(self) -> None:
        """What follows is compared among itself."""
        self.best = None

    def state_dict(self) -> State:
        """JSON values."""
        return {"best": self.best}

    def load_state_dict(self, state: State) -> None:
        """Go on from `state_dict()`."""
        self.best = state["best"]


class EarlyStopping:
    """Ends a run after `patience` validations in a row without a new best, or once `stop_at` is reached.

    patience None: never out of patience. stop_at None: no target; otherwise a best value that is at least as good
    as it ends the run. The verdict is a function of the state, so a run that was stopped stays stopped when it is
    started again.
    """

    def __init__(self, patience: int | None, direction: Direction, stop_at: float | None = None) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience is {patience}; it counts validations: use 1 or more, or None for never.")
        self.patience = patience
        self.stop_at = stop_at
        self.bad_validations = 0
        self._best = KeepBest(direction)

    @property
    def verdict(self) -> StopReason | None:
        """What the validations so far mean; None: go on."""
        best, target = self._best.best, self.stop_at
        if best is not None and target is not None and at_least_as_good(best, target, self._best.direction):
            return StopReason.TARGET_REACHED
        if self.patience is not None and self.bad_validations >= self.patience:
            return StopReason.OUT_OF_PATIENCE
        return None

    def observe(self, value: float) -> StopReason | None:
        """Count one validation and return the verdict."""
        self.bad_validations = 0 if self._best.observe(value) else self.bad_validations + 1
        return self.verdict

    def forget(self) -> None:
        """Begin anew."""
        self.bad_validations = 0
        self._best.forget()

    def state_dict(self) -> State:
        """JSON values."""
        return {"bad_validations": self.bad_validations, "best": self._best.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Go on from `state_dict()`."""
        self.bad_validations = state["bad_validations"]
        self._best.load_state_dict(state["best"])


class Remaining(NamedTuple):
    """What is left until a trigger is due; None where the trigger has no such limit. Never negative."""

    steps: int | None
    epochs: float | None
    seconds: float | None

    def words(self) -> str:
        """For the screen: `40 steps or 12 s`; empty if there is no limit."""
        parts = (
            (f"{self.steps} steps", self.steps),
            (f"{self.seconds or 0:.0f} s", self.seconds),
            (f"{self.epochs or 0:.2f} epochs", self.epochs),
        )
        return " or ".join(text for text, value in parts if value is not None)


class Every:
    """A trigger: due after so many applied steps, epochs or seconds since it last fired, whichever is first.

    Without any limit it is never due. `seconds` must come from one clock that all ranks agree on and that goes on
    over restarts (seconds of training), since the state is compared with it.
    """

    def __init__(self, steps: int | None = None, epochs: float | None = None, seconds: float | None = None) -> None:
        for name, limit in (("steps", steps), ("epochs", epochs), ("seconds", seconds)):
            if limit is not None and limit <= 0:
                raise ValueError(f"every {limit} {name}: use a number above 0, or None for never.")
        self._limits = Remaining(steps, epochs, seconds)
        self._fired = (0, 0.0, 0.0)

    def due(self, step: int, epoch: float, seconds: float) -> bool:
        """Whether to act now."""
        left = self.remaining(step, epoch, seconds)
        return left.steps == 0 or left.epochs == 0 or left.seconds == 0

    def fired(self, step: int, epoch: float, seconds: float) -> None:
        """It was acted on: all three limits start again from here."""
        self._fired = (step, epoch, seconds)

    def remaining(self, step: int, epoch: float, seconds: float) -> Remaining:
        """What is left of each limit."""
        steps, epochs, limit_seconds = self._limits
        at_step, at_epoch, at_seconds = self._fired
        epochs_left = None if epochs is None else epochs - (epoch - at_epoch)
        if epochs_left is not None and epochs_left < EPOCH_TOLERANCE:
            epochs_left = 0.0
        return Remaining(
            None if steps is None else max(0, steps - (step - at_step)),
            epochs_left,
            None if limit_seconds is None else max(0.0, limit_seconds - (seconds - at_seconds)),
        )

    def state_dict(self) -> State:
        """JSON values."""
        step, epoch, seconds = self._fired
        return {"step": step, "epoch": epoch, "seconds": seconds}

    def load_state_dict(self, state: State) -> None:
        """Go on from `state_dict()`."""
        self._fired = (state["step"], state["epoch"], state["seconds"])
