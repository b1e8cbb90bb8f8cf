"""The decisions of a run, gathered: what the loop asks, and what of it a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from distill_engine.train.balance import CurrentFactors, no_factors
from distill_engine.train.config import StopSection
from distill_engine.train.learning_rate import LearningRate
from distill_engine.train.policies import EarlyStopping, Every, KeepBest
from distill_engine.train.progress import EndReason, Progress


class TrainingError(RuntimeError):
    """Training cannot go on, and starting again would not help."""


class Quantizable(Protocol):
    """The part of the student that is told."""

    def quantize(self, on: bool) -> None:
        """Whether passes from now on are int8's."""
        ...


@dataclass
class Policies:
    """The decisions of a run; every one with a state is a pure state machine that lives in the checkpoint.

    factors           of the loss weights at the moment
    background_saves  checkpoints are written while training goes on
    validates         there is something to validate on
    quantized_from    the first step, counted from 0, whose passes are int8's; None: no step's
    """

    learning_rate: LearningRate
    keep_best: KeepBest
    early_stopping: EarlyStopping
    log_when: Every
    validate_when: Every
    save_when: Every
    limits: StopSection = field(default_factory=lambda: StopSection())
    metric: str = "ppl"
    save_after_validation: bool = True
    factors: CurrentFactors = no_factors
    background_saves: bool = False
    validates: bool = True
    quantized_from: int | None = None

    def __post_init__(self) -> None:
        self._validated: tuple[int, float | None] = (-1, None)

    def observe(self, values: Mapping[str, float], step: int) -> bool:
        """Take in the numbers of a validation; whether they are a new best.

        Raises TrainingError if the deciding metric is not among them.
        """
        if self.metric not in values:
            raise TrainingError(
                f"validation.metric is {self.metric!r}, which validation did not produce. It produced: "
                f"{', '.join(sorted(values))}."
            )
        if self.quantizes(step - 1) and not self.quantizes(self._last_validation - 1):
            # numbers of another arithmetic: the best so far would not be beaten by what it cannot be compared with
            for one in (self.learning_rate, self.keep_best, self.early_stopping):
                one.forget()
        self._validated = (step, values[self.metric])
        self.learning_rate.observe(values["loss"], step)
        self.early_stopping.observe(values[self.metric])
        return self.keep_best.observe(values[self.metric])

    def named(self, values: Mapping[str, float]) -> dict[str, float]:
        """They and the best of the deciding one, with the names that records have."""
        best = {} if self.keep_best.best is None else {f"best/{self.metric}": self.keep_best.best}
        return {f"valid/{name}": number for name, number in values.items()} | best

    def value_at(self, step: int) -> float | None:
        """The deciding metric, if this process has validated at that step."""
        return self._validated[1] if self._validated[0] == step else None

    def validation_is_stale(self, step: int) -> bool:
        """Whether a run that ends at this step lacks its numbers, and validates at all."""
        return self.validates and step > 0 and self._last_validation != step

    def quantizes(self, step: int) -> bool:
        """Whether the passes of a step, counted from 0, are int8's: a function of the step alone."""
        return self.quantized_from is not None and step >= self.quantized_from

    def quantize(self, student: Quantizable, step: int) -> None:
        """Let the passes of a student be those of a step."""
        if self.quantized_from is not None:
            student.quantize(self.quantizes(step))

    @property
    def _last_validation(self) -> int:
        step: int = self.validate_when.state_dict()["step"]
        return step

    def end_reason(self, progress: Progress, epoch: float) -> EndReason | None:
        """What of these decisions says that the run is over. Validations end none before its int8 steps have begun."""
        waits = self.quantized_from is not None and not self.quantizes(self._last_validation - 1)
        verdict = None if waits else self.early_stopping.verdict
        return self.limits.reached(progress, epoch) if verdict is None else EndReason(verdict.value)

    def stateful(self) -> dict[str, Any]:
        """Those with a state, by the name of their part."""
        names = ("learning_rate", "keep_best", "early_stopping", "log_when", "validate_when", "save_when")
        return {name: getattr(self, name) for name in names}
