"""Turns what happens in a step into named training metrics, kept on the device until they are logged."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distill_engine.losses.objective import Hits, Objective, TermValue
from distill_engine.train.balance import CurrentFactors, no_factors
from distill_engine.train.nonfinite import NonFinite
from distill_engine.values import Batch

_PREDICTED = ("train/token_accuracy", "train/teacher_agreement")
_ROLLOUT = ("train/rollout/sampled_share", "train/rollout/sample_tokens")
_PER_STEP, _PER_POSITION = ("labels_per_step", "contexts_per_step"), ("labels_per_position", "contexts_per_position")


class _Slots(NamedTuple):
    """Where the numbers of terms and their layers lie when packed: [slots] the term's place, and their names."""

    terms: Tensor
    names: tuple[str, ...]


class RunningAverages(Protocol):
    """Sums and counts by name (telemetry.averages)."""

    def add_all(self, names: tuple[str, ...], values: Tensor, counts: Sequence[float] = ()) -> None:
        """Add sums, and what they are to be divided by."""
        ...

    def reduce(self, sum_across_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Global averages since the last call."""
        ...


class Meter:
    """Metrics of training steps, averaged over the logging interval, all micro-batches and ranks."""

    def __init__(
        self,
        objective: Objective,
        averages: RunningAverages,
        world_size: int,
        factors: CurrentFactors = no_factors,
        *,
        samples: bool = False,
    ) -> None:
        """`factors`: of the terms' weights at the moment; `samples`: labels may be the student's own."""
        self._samples = samples
        self._objective = objective
        self._factors = factors
        self._averages = averages
        self._world_size = world_size
        self._steps = 0
        self._slots: _Slots | None = None
        self.nonfinite = NonFinite()

    def add_micro_batch(
        self,
        batch: Batch,
        terms: Mapping[str, TermValue],
        hits: Hits,
        micro_batches: int,
    ) -> None:
        """One micro-batch. Never waits for the device."""
        sums, finite = self.nonfinite.sift(terms)  # what is not finite is left out, with its count
        slots = self._slots_of(terms)
        of_slots = torch.stack([value.count for value in terms.values()]).index_select(0, slots.terms)
        if self._objective.definition == "parlai":  # a mean of means: every micro-batch weighs the same
            some_are_off = batch.sampled or any(value.idle for value in terms.values())
            counted = finite * (of_slots > 0) if some_are_off else finite
            sums, of_slots = sums / of_slots.clamp(min=1.0), counted
        else:
            of_slots = finite * of_slots
        predicted = [hits.correct] if hits.agreeing is None else [hits.correct, hits.agreeing]
        tokens = self._objective.tokens(batch)
        totals = [part[None] for part in (*predicted, *tokens, *tokens)]
        labels = [hits.labels[None]] * len(predicted)
        if batch.sampled:  # it would be measured by its own words
            totals[0], labels[0] = totals[0] * 0, labels[0] * 0
        positions = float(batch.labels.numel() + batch.context_mask.numel())
        of_step = 1.0 / (micro_batches * self._world_size)  # such counts add up to 1 per optimizer step
        names = (*slots.names, *_PREDICTED[: len(predicted)], *_PER_STEP, *_PER_POSITION)
        counts = [of_step, of_step, positions, positions]
        if self._samples:
            names += _ROLLOUT
            length = tokens[0][None] if batch.sampled else torch.zeros_like(tokens[0][None])
            totals += [torch.full_like(length, int(batch.sampled)), length]
            counts += [1.0, float(len(batch) * batch.sampled)]
        packed = torch.cat([sums, *totals, of_slots, *labels])
        self._averages.add_all(names, packed, counts)

    def _slots_of(self, terms: Mapping[str, TermValue]) -> _Slots:
        """They are the same for all micro-batches of a run."""
        if self._slots is None:
            names, places = [], []
            for place, (term, value) in enumerate(terms.items()):
                depth = value.per_layer.numel()
                names += [f"train/term/{term}/raw", *(f"train/term/{term}/layer/{layer}" for layer in range(depth))]
                places += [place] * (1 + depth)
            device = next(iter(terms.values())).sum.device
            self._slots = _Slots(torch.tensor(places, device=device), tuple(names))
        return self._slots

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
        per_step = sum(values.pop(name, 0.0) for name in _PER_STEP)
        values["train/tokens_per_second"] = per_step * steps / wall_seconds
        shares = [values.pop(name) for name in _PER_POSITION if name in values]
        if shares:
            values["train/padding_share"] = 1.0 - sum(shares)
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
