"""Turns what happens in a step into named training metrics, kept on the device until they are logged."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from distill_engine.losses.objective import Hits, Objective
from distill_engine.train.balance import CurrentFactors, no_factors
from distill_engine.train.nonfinite import NonFinite, Sifted
from distill_engine.values import Batch, TermValue

_TOKENS = "tokens_per_step"


class RunningAverages(Protocol):
    """Sums and counts by name (telemetry.averages)."""

    def add(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add a sum and what it is to be divided by."""
        ...

    def reduce(self, sum_across_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Global averages since the last call."""
        ...


class Meter:
    """Metrics of training steps, averaged over the logging interval, all micro-batches and ranks."""

    def __init__(
        self, objective: Objective, averages: RunningAverages, world_size: int, factors: CurrentFactors = no_factors
    ) -> None:
        """`factors`: of the terms' weights at the moment."""
        self._objective = objective
        self._factors = factors
        self._averages = averages
        self._world_size = world_size
        self._steps = 0
        self.nonfinite = NonFinite()

    @property
    def pending(self) -> bool:
        """Whether steps were added since the last reading."""
        return self._steps > 0

    def add_micro_batch(
        self,
        batch: Batch,
        terms: Mapping[str, TermValue],
        hits: Hits,
        micro_batches: int,
    ) -> None:
        """One micro-batch. Never waits for the device."""
        add = self._averages.add
        of_step = 1.0 / (micro_batches * self._world_size)  # such counts add up to 1 per optimizer step
        for term, sifted in self.nonfinite.sift(terms).items():
            self._add_term(term, sifted, terms[term].count)
        tokens = hits.labels + batch.context_mask.sum()
        add(_TOKENS, tokens, of_step)
        positions = batch.labels.numel() + batch.input_ids.numel()
        add("train/padding_share", positions - tokens, float(positions))
        add("train/token_accuracy", hits.correct, hits.labels)
        if hits.agreeing is not None:
            add("train/teacher_agreement", hits.agreeing, hits.labels)

    def _add_term(self, term: str, sifted: Sifted, count: Tensor) -> None:
        """What is not finite is left out of its own average, with its count."""
        per_batch = self._objective.definition == "parlai"  # a mean of means: every micro-batch weighs the same
        sums = sifted.sums / count.clamp(min=1.0) if per_batch else sifted.sums
        counts = sifted.finite if per_batch else sifted.finite * count
        self._averages.add(f"train/term/{term}/raw", sums[0], counts[0])
        for layer in range(len(sums) - 1):
            self._averages.add(f"train/term/{term}/layer/{layer}", sums[1 + layer], counts[1 + layer])

    def count_step(self) -> None:
        """All micro-batches of a step were added."""
        self._steps += 1

    def read(self, sum_across_ranks: Callable[[Tensor], Tensor], wall_seconds: float) -> dict[str, float]:
        """Named values since the last reading, in two reductions.

        A term that was never finite is NaN, and so is the total; `train/nonfinite` counts micro-batches left out.
        """
        values = self._averages.reduce(sum_across_ranks)
        bad, affected = self.nonfinite.read(sum_across_ranks)
        for term, count in bad.items():
            values.setdefault(f"train/term/{term}/raw", math.nan)
            values[f"train/nonfinite/{term}"] = float(count)
        values["train/nonfinite"] = float(affected)
        steps, self._steps = self._steps, 0
        values["train/tokens_per_second"] = values.pop(_TOKENS, 0.0) * steps / wall_seconds
        values["time/seconds_per_step"] = wall_seconds / max(steps, 1)
        weighted = {
            f"train/term/{term}/weighted": weight * values[f"train/term/{term}/raw"]
            for term, weight in self._objective.effective_weights(self._factors()).items()
            if f"train/term/{term}/raw" in values
        }
        values |= weighted
        values["train/total"] = sum(weighted.values())
        task = values.get("train/term/task/raw")
        if task is not None:
            values["train/ppl"] = math.inf if task >= 700 else math.exp(task)  # NaN stays NaN
        return values


def memory_gib(device: torch.device) -> dict[str, float]:
    """Most memory allocated on the accelerator since the last call, and the host's high-water mark of this process."""
    values = {"memory/host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # Linux counts KiB
    if device.type == "cuda":
        values["memory/peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    return values
