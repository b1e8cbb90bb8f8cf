"""What goes on beside a step: measuring, balancing, sampling, publishing, supervising."""
# ruff: noqa: ARG002 - most hooks need few of the arguments

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from distill_engine.checkpoint.parts import Stateful
from distill_engine.losses.objective import Hits, TermValue
from distill_engine.train.progress import Progress
from distill_engine.train.stop_request import StopRequest
from distill_engine.values import Batch, Features


class Hook:
    """Called by the training loop, on all ranks, hook after hook in their order; every call may be collective.

    Overrides what it needs. A hook never changes what a step computes, but for the balancer, whose factors the loop
    asks of the policies. What it raises ends the run.
    """

    @property
    def stateful(self) -> Mapping[str, Stateful]:
        """What goes into checkpoints, by the name of its part; asked for before each save and load."""
        return {}

    def begins_at(self, progress: Progress) -> None:
        """The run begins or goes on here. `progress` is the loop's own: it is kept and goes on with the steps."""

    def begins(self, doing: str) -> None:
        """Something begins, in a few words; many times a step."""

    def stop_requested(self) -> bool:
        """Whether this rank was asked to end the run; after each step. The ranks agree on it."""
        return False

    def before_backward(self, attempt: int, batch: Batch, teacher: Features | None, divisor: Tensor) -> None:
        """The student's pass over a micro-batch comes next.

        attempt  optimizer steps before this one, skipped ones too; the same for all micro-batches of a step
        divisor  as for Objective.total
        """

    def after_micro_batch(self, batch: Batch, terms: Mapping[str, TermValue], hits: Hits, micro_batches: int) -> None:
        """Its loss terms are known; `micro_batches` make a step. Never wait for the device here."""

    def after_step(self, progress: Progress, outcome: Any, learning_rate: float) -> None:
        """A step was applied or skipped, and is counted; see engine.student.StepOutcome."""

    def train_values(self, wall_seconds: float) -> dict[str, float]:
        """Metrics since the last call, `wall_seconds` ago; their full names."""
        return {}

    def valid_values(self, progress: Progress) -> dict[str, float]:
        """Metrics of a validation, without `valid/`; the student is in eval mode. Those of rank 0 count."""
        return {}

    def after_validation(self, progress: Progress, values: Mapping[str, float]) -> None:
        """It is recorded, and the policies have seen it."""

    def new_best(self, progress: Progress, values: Mapping[str, float]) -> None:
        """It was the best so far; after every hook's `after_validation`."""


class Hooks(Hook):
    """Several as one, in their order."""

    def __init__(self, *hooks: Hook) -> None:
        self.each = list(hooks)

    @property
    def stateful(self) -> Mapping[str, Stateful]:
        """All of them."""
        return {name: holder for hook in self.each for name, holder in hook.stateful.items()}

    def begins_at(self, progress: Progress) -> None:
        """To each."""
        for hook in self.each:
            hook.begins_at(progress)

    def begins(self, doing: str) -> None:
        """To each."""
        for hook in self.each:
            hook.begins(doing)

    def stop_requested(self) -> bool:
        """Whether one of them was."""
        return any(hook.stop_requested() for hook in self.each)

    def before_backward(self, attempt: int, batch: Batch, teacher: Features | None, divisor: Tensor) -> None:
        """To each."""
        for hook in self.each:
            hook.before_backward(attempt, batch, teacher, divisor)

    def after_micro_batch(self, batch: Batch, terms: Mapping[str, TermValue], hits: Hits, micro_batches: int) -> None:
        """To each."""
        for hook in self.each:
            hook.after_micro_batch(batch, terms, hits, micro_batches)

    def after_step(self, progress: Progress, outcome: Any, learning_rate: float) -> None:
        """To each."""
        for hook in self.each:
            hook.after_step(progress, outcome, learning_rate)

    def train_values(self, wall_seconds: float) -> dict[str, float]:
        """All of them."""
        return {name: value for hook in self.each for name, value in hook.train_values(wall_seconds).items()}

    def valid_values(self, progress: Progress) -> dict[str, float]:
        """All of them."""
        return {name: value for hook in self.each for name, value in hook.valid_values(progress).items()}

    def after_validation(self, progress: Progress, values: Mapping[str, float]) -> None:
        """To each."""
        for hook in self.each:
            hook.after_validation(progress, values)

    def new_best(self, progress: Progress, values: Mapping[str, float]) -> None:
        """To each."""
        for hook in self.each:
            hook.new_best(progress, values)


class Supervision(Hook):
    """The process around the loop: a watchdog hears what begins, a signal asks for the end."""

    def __init__(
        self, beat: Callable[[str], None] = lambda _doing: None, stop_request: StopRequest | None = None
    ) -> None:
        self._beat = beat
        self.stop_request = stop_request or StopRequest()

    def begins(self, doing: str) -> None:
        """A beat."""
        self._beat(doing)

    def stop_requested(self) -> bool:
        """As the signal's handler left it; it is kept."""
        return self.stop_request.requested


class Turn(Hook):
    """Tells that a step has come behind which something is another."""

    def __init__(self, step: int, tell: Callable[[int, float], None]) -> None:
        """`tell(step, seconds)` is called once that many steps have been applied, on all ranks."""
        self._step, self._tell = step, tell

    def after_step(self, progress: Progress, outcome: Any, learning_rate: float) -> None:
        """At the step itself, not at those that are skipped behind it."""
        if outcome.applied and progress.steps == self._step:
            self._tell(progress.steps, progress.seconds)


class AtValidation(Hook):
    """Something that is measured at each validation, beside the teacher-forced numbers."""

    def __init__(self, measure: Callable[[int, float], dict[str, float]]) -> None:
        """`measure(step, seconds)` is called on all ranks."""
        self._measure = measure

    def valid_values(self, progress: Progress) -> dict[str, float]:
        """As measured."""
        return self._measure(progress.steps, progress.seconds)


class Remembered(Hook):
    """States of somebody else that go with the checkpoints."""

    def __init__(self, **stateful: Stateful) -> None:
        self._stateful = stateful

    @property
    def stateful(self) -> Mapping[str, Stateful]:
        """As given."""
        return self._stateful
