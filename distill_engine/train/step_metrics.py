"""The hook that hands what happens in steps to the meter, and says where numbers were not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distill_engine.losses.objective import Hits, TermValue
from distill_engine.train.decisions import TrainingError
from distill_engine.train.hooks import Hook
from distill_engine.train.meter import Meter, memory_gib
from distill_engine.train.nonfinite import NonFiniteReport
from distill_engine.train.progress import Progress
from distill_engine.train.roles import Batches, Ranks, Sinks
from distill_engine.values import Batch


class StepMetrics(Hook):
    """Metrics of training steps; ends a run that only skips."""

    def __init__(
        self,
        meter: Meter,
        batches: Batches,
        ranks: Ranks,
        sinks: Sinks,
        max_skipped_steps: int,
        advice: Callable[[], str],
        search: Callable[[Sequence[Batch]], str] = lambda _group: "",
    ) -> None:
        """`max_skipped_steps` in a row are too many; `advice` says what to do then; `search`: see LayerSearch."""
        self.meter = meter
        self._batches = batches
        self._ranks = ranks
        self._report = NonFiniteReport(meter.nonfinite, ranks, sinks.message, search)
        self._group: list[Batch] = []  # of this step
        self._limit, self._advice = max_skipped_steps, advice
        self._attempt = 0
        self._last: dict[str, float] = {}

    def after_micro_batch(self, batch: Batch, terms: Mapping[str, TermValue], hits: Hits, micro_batches: int) -> None:
        """Add it to the meter."""
        self._group.append(batch)
        self.meter.add_micro_batch(batch, terms, hits, micro_batches)

    def after_step(self, progress: Progress, outcome: Any, learning_rate: float) -> None:
        """Tell of a step that was skipped. Raises TrainingError when too many were."""
        group, self._group = self._group, []
        self.meter.count_step()
        self._attempt = progress.attempts
        self._last = {"train/lr": learning_rate, "train/loss_scale": outcome.loss_scale}
        self._last["train/skipped_steps"] = float(progress.skipped_steps)
        if outcome.grad_norm is not None:
            self._last["train/grad_norm"] = outcome.grad_norm
        self._report.after_step(self._attempt, outcome.applied, outcome.grad_norm, outcome.loss_scale, group)
        if progress.skipped_in_a_row >= self._limit:
            raise TrainingError(
                f"{self._limit} optimizer steps in a row were skipped (stop.max_skipped_steps): "
                f"{self._report.named(group)}. Last applied step: {progress.steps}, loss scale {outcome.loss_scale:g}. "
                f"{self._advice()}"
            )

    def train_values(self, wall_seconds: float) -> dict[str, float]:
        """The meter's, and memory; tells of micro-batches that were left out."""
        values = self.meter.read(self._ranks.sum, wall_seconds)
        self._report.after_reading(self._attempt, values["train/nonfinite"])
        values |= self._last | {"train/epoch": self._batches.epoch, "train/examples": float(self._batches.examples)}
        return values | memory_gib(self._ranks.device)
