"""Teacher-forced validation: every example once over all ranks, global numbers, the same on every rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from distill_engine.evaluate.measure import FeatureFunction, measured
from distill_engine.evaluate.teacher_doubts import COLUMNS, doubt_sums, teacher_doubt
from distill_engine.losses.objective import Objective
from distill_engine.metrics.tally import Average, Tally
from distill_engine.teachers.protocol import Teacher
from distill_engine.train.balance import CurrentFactors, no_factors
from distill_engine.train.hooks import Hook
from distill_engine.train.progress import Progress
from distill_engine.train.roles import Evaluates, Ranks, Sinks
from distill_engine.values import Batch


def as_read(batch: Batch) -> Batch:
    """Each model runs its own encoder."""
    return batch


class Validator:
    """Runs the validation set through student and teacher and returns named values.

    The loader yields equally many batches on every rank (short ranks get dummy batches without labels), because
    each forward pass of a sharded teacher is a collective.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        objective: Objective,
        dataset_labels: Sequence[str],
        ranks: Ranks,
        average: Average = "macro",
        factors: CurrentFactors = no_factors,
        encoded: Callable[[Batch], Batch] = as_read,
    ) -> None:
        """`encoded`: reads inputs once for student and teacher, where they share the encoder.
        `average`: what values of no single dataset are, the mean over datasets or that of all tokens together.
        `factors`: of the terms' weights at the moment, for the total."""
        self.doubt: str | None = None  # about the teacher, after the last run; the same on all ranks
        self._factors = factors
        self._encoded = encoded
        self._average: Average = average
        self._batches = batches
        self._objective = objective
        self._labels = list(dataset_labels)
        self._ranks = ranks

    @torch.no_grad()
    def run(
        self, student: Evaluates, teacher: Teacher | None, on_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Metrics by name (without the `valid/` prefix); the student must be in eval mode.

        `on_batch` is called before each batch: a validation may be long without being stuck.
        """
        started = time.perf_counter()
        device, datasets = self._ranks.device, len(self._labels)
        tally = Tally() if teacher is None else Tally("agreement", "teacher")
        quality = torch.zeros(datasets, tally.columns, dtype=torch.float64, device=device)
        doubts = torch.zeros(len(COLUMNS), dtype=torch.float64, device=device)
        terms = torch.zeros(len(self._objective.term_weights), 2, dtype=torch.float64, device=device)  # sum, count
        vocabulary = 0
        models, imitated = {"student": student.features}, None if teacher is None else _one_by_one(teacher)
        for batch in self._batches:
            on_batch()
            counts = bool(batch.label_mask.any())
            read = self._encoded(batch.to(device))
            if not counts:  # a filler: it takes part in the teacher's collectives, that is all
                if imitated is not None:
                    vocabulary = imitated(read, self._objective.teacher_request()).vocabulary
                continue
            found = measured(models, imitated, read, self._objective, tally, datasets)["student"]
            vocabulary = found.vocabulary
            quality += found.sums
            if teacher is not None:
                doubts += doubt_sums(found.scores)
            terms += torch.stack([torch.stack([value.sum, value.count]) for value in found.terms.values()])
        parts = (quality, doubts, terms)
        summed = self._ranks.sum(torch.cat([part.flatten() for part in parts]))
        quality, doubts, terms = (
            part.view_as(local)
            for part, local in zip(summed.split([local.numel() for local in parts]), parts, strict=True)
        )
        self.doubt = None if teacher is None else teacher_doubt(doubts, vocabulary)
        measures = tally.values(quality, self._labels, self._average) | self._term_values(terms)
        return measures | {"seconds": time.perf_counter() - started}

    def _term_values(self, sums: Tensor) -> dict[str, float]:
        values = {}
        total = 0.0
        weights = self._objective.effective_weights(self._factors())
        for (term, weight), (value, count) in zip(weights.items(), sums.tolist(), strict=True):
            raw = value / max(count, 1.0)
            values[f"term/{term}/raw"] = raw
            total += weight * raw
        values["total"] = total
        return values


def _one_by_one(teacher: Teacher) -> FeatureFunction:
    return lambda batch, request: next(teacher.features([batch], request))


class Validation(Hook):
    """Validates when the loop does, and says what the numbers say against the teacher."""

    def __init__(
        self,
        validator: Validator,
        student: Evaluates,
        teacher: Teacher | None,
        sinks: Sinks,
        beat: Callable[[str], None] = lambda _doing: None,
    ) -> None:
        """`beat` is called before each batch, with a few words."""
        self.validator = validator
        self._student, self._teacher = student, teacher
        self._sinks = sinks
        self._beat = beat

    def valid_values(self, progress: Progress) -> dict[str, float]:
        """The validator's."""
        beat = partial(self._beat, f"validating after step {progress.steps}")
        return self.validator.run(self._student, self._teacher, beat)

    def after_validation(self, progress: Progress, values: Mapping[str, float]) -> None:  # noqa: ARG002
        """A doubt is an event."""
        if self.validator.doubt is not None:
            self._sinks.record("event", progress.steps, progress.seconds, {}, self.validator.doubt)
