"""Which checkpoints stay: the newest, the best validated, and one in every so many steps. A pure rule over names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from distill_engine.metrics.direction import Direction, known_direction


class Saved(NamedTuple):
    """A complete checkpoint. `again` counts up where a step was saved more than once; `value` is what the deciding
    metric was at this very step, None where it was not validated then."""

    step: int
    again: int
    name: str
    value: float | None


@dataclass(frozen=True)
class Retention:
    """Rules that each keep what they name; a checkpoint goes when none of them names it.

    last       the newest so many
    best       those of the best so many validated steps; of equal values the earlier
    every      the first checkpoint at or after every so many steps, for ever
    direction  which way the metric is better
    anew       values of later steps are of another arithmetic: as soon as there are any, only these are compared
    """

    last: int
    best: int = 0
    every: int | None = None
    direction: Direction = "min"
    anew: int | None = None

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"keep_last is {self.last}; a run needs a checkpoint to resume from: use 1 or more.")
        if self.best < 0:
            raise ValueError(f"keep_best is {self.best}; it counts checkpoints: use 0 or more.")
        if self.every is not None and self.every < 1:
            raise ValueError(f"keep_every is {self.every}; it counts steps: use 1 or more, or None.")
        known_direction(self.direction)

    def kept(self, present: Iterable[Saved]) -> set[str]:
        """Names of those that stay. What is kept now is kept as long as nothing newer or better comes."""
        ordered = sorted(present, key=lambda saved: (saved.step, saved.again))
        of_step = {saved.step: saved for saved in ordered}  # saved again: the newer one stands for the step
        return {
            *(saved.name for saved in ordered[-self.last :]),
            *(saved.name for saved in self._best(list(of_step.values()))),
            *(saved.name for saved in self._milestones(list(of_step.values()))),
        }

    def _best(self, ordered: Sequence[Saved]) -> list[Saved]:
        sign = 1.0 if self.direction == "min" else -1.0
        validated = [(sign * saved.value, saved) for saved in ordered if saved.value is not None]
        if self.anew is not None:
            validated = [pair for pair in validated if pair[1].step > self.anew] or validated
        return [saved for _, saved in sorted(validated, key=lambda pair: pair[0])[: self.best]]  # a stable order

    def _milestones(self, ordered: Sequence[Saved]) -> list[Saved]:
        if self.every is None:
            return []
        first: dict[int, Saved] = {}
        for saved in ordered:
            first.setdefault(saved.step // self.every, saved)
        return [saved for number, saved in first.items() if number > 0]
