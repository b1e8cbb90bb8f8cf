"""The learning rate: a function of applied steps and, for reduce_on_plateau, of the validations seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from distill_engine.metrics.direction import Direction, known_direction
from distill_engine.train.policies import State

ScheduleName = Literal["constant", "linear", "cosine", "reduce_on_plateau"]

# torch's ReduceLROnPlateau leaves the learning rate alone when a drop would be no larger than this.
SMALLEST_DROP = 1e-8


@dataclass(frozen=True)
class Warmup:
    """A linear rise from `start` (a share of the peak) at the first step to 1 after `steps` applied steps.

    ParlAI rises the same way but never takes its last warm-up step: it goes on for ever at
    `start + (1 - start) * (steps - 1) / steps` of the peak. Here the full learning rate is reached.
    """

    steps: int = 0
    start: float = 1e-4

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"warm-up steps are {self.steps}; use 0 for none, or a positive number.")
        if not 0 < self.start <= 1:
            raise ValueError(
                f"warm-up starts at {self.start} of the learning rate; the first step must move the weights: "
                "use a share above 0 and up to 1."
            )

    def share(self, step: int) -> float:
        """Share of the peak for the step that follows `step` applied steps."""
        if step >= self.steps:
            return 1.0
        return self.start + (1.0 - self.start) * step / self.steps

    def covers(self, step: int) -> bool:
        """Whether, after `step` applied steps, no step was taken at the full learning rate yet."""
        return self.steps > 0 and step <= self.steps


class Plateau:
    """Asks for a drop after more than `patience` validations in a row without a relative improvement.

    The rule of torch's ReduceLROnPlateau (relative threshold, no cool-down): a value counts as better when it beats
    the best by the share `threshold`; after a drop the count of bad validations starts again.
    """

    def __init__(
        self, factor: float = 0.5, patience: int = 3, threshold: float = 1e-4, direction: Direction = "min"
    ) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"plateau factor is {factor}; a drop multiplies by it: use a number between 0 and 1.")
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.direction = known_direction(direction)
        self._best: float | None = None
        self._bad_validations = 0

    def observe(self, value: float) -> bool:
        """Whether the learning rate drops now."""
        if self._better(value):
            self._best = value
            self._bad_validations = 0
        else:
            self._bad_validations += 1
        if self._bad_validations <= self.patience:
            return False
        self._bad_validations = 0
        return True

    def _better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self._best is None:
            return True
        if self.direction == "min":
            return value < self._best * (1.0 - self.threshold)
        return value > self._best * (1.0 + self.threshold)

    def forget(self) -> None:
        """Begin anew."""
        self._best, self._bad_validations = None, 0

    def state_dict(self) -> State:
        """JSON values."""
        return {"best": self._best, "bad_validations": self._bad_validations}

    def load_state_dict(self, state: State) -> None:
        """Go on from `state_dict()`."""
        self._best = state["best"]
        self._bad_validations = state["bad_validations"]


class LearningRate:
    """The whole schedule: a function of applied steps and of the plateau's state, nothing else.

    constant           the peak
    linear, cosine     from the peak after warm-up down to `final_share` of it at `total_steps`, then flat
    reduce_on_plateau  the peak, dropped by what `observe` sees
    """

    def __init__(
        self,
        name: ScheduleName,
        peak: float,
        *,
        warmup: Warmup | None = None,
        total_steps: int | None = None,
        final_share: float = 0.0,
        plateau: Plateau | None = None,
    ) -> None:
        self.name = name
        self.warmup = warmup or Warmup()
        self.final_share = final_share
        self._total_steps = self._checked_total(name, total_steps)
        self._plateau = plateau or Plateau()
        self._level = peak

    def _checked_total(self, name: str, total_steps: int | None) -> int:
        if name in ("constant", "reduce_on_plateau"):
            return 0
        if name not in ("linear", "cosine"):
            raise ValueError(f"schedule is {name!r}; use constant, linear, cosine or reduce_on_plateau.")
        if total_steps is None or total_steps <= self.warmup.steps:
            raise ValueError(
                f"schedule {name} ends at total_steps {total_steps}, warm-up takes {self.warmup.steps} steps; "
                "the end must lie after the warm-up: set schedule.total_steps or stop.max_steps."
            )
        return total_steps

    def at(self, step: int) -> float:
        """Learning rate of the step that follows `step` applied steps (0 for the first); never 0 at the first."""
        return self._level * self.warmup.share(step) * self._decay(step)

    def _decay(self, step: int) -> float:
        if self._total_steps == 0:
            return 1.0
        done = (step - self.warmup.steps) / (self._total_steps - self.warmup.steps)
        done = min(max(done, 0.0), 1.0)
        left = 1.0 - done if self.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.final_share + (1.0 - self.final_share) * left

    def observe(self, value: float, step: int) -> bool:
        """Tell of a validation made after `step` applied steps; whether the learning rate dropped.

        Only reduce_on_plateau listens, and not to validations during warm-up.
        """
        if self.name != "reduce_on_plateau" or self.warmup.covers(step):
            return False
        if not self._plateau.observe(value):
            return False
        lower = self._level * self._plateau.factor
        if self._level - lower <= SMALLEST_DROP:
            return False
        self._level = lower
        return True

    def forget(self) -> None:
        """What follows is compared among itself; the learning rate stays where it is."""
        self._plateau.forget()

    def state_dict(self) -> State:
        """JSON values."""
        return {"level": self._level, "plateau": self._plateau.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Go on from `state_dict()`."""
        self._level = state["level"]
        self._plateau.load_state_dict(state["plateau"])
