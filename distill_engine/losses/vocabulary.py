"""The two terms over the vocabulary and what is predicted there: from whole logits, or from their factors in blocks.

Training counts hits; validation wants to know them position by position, because it sums by task and counts examples
whose every token is predicted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from distill_engine.losses.dispatch import Implementation, vocabulary_scores, vocabulary_sums
from distill_engine.losses.prediction import prediction_sum, task_and_prediction_sums, task_sum
from distill_engine.losses.quality import TokenScores, accuracy_counts, token_scores
from distill_engine.values import IGNORED_LABEL, Features

TERMS = ("task", "prediction")


class Hits(NamedTuple):
    """Label positions of a micro-batch, each [] (no gradient).

    labels    all
    correct   where the student predicts the label
    agreeing  where student and teacher predict the same token; None without a teacher
    """

    labels: Tensor
    correct: Tensor
    agreeing: Tensor | None


@dataclass(frozen=True)
class VocabularyTerms:
    """Computes those terms that are active, float32 sums [] by name."""

    active: Collection[str]
    implementation: Implementation
    temperature: float

    def sums_and_hits(
        self, student: Features, teacher: Features | None, labels: Tensor
    ) -> tuple[dict[str, Tensor], Hits]:
        """With gradients for the student; labels [B, T]."""
        if student.logits is not None:
            whole = None if teacher is None else teacher.logits
            correct, agreeing, count = accuracy_counts(student.logits.detach(), whole, labels)
            return self._from_logits(student, teacher, labels), Hits(count, correct, agreeing)
        assert self.implementation != "reference" and student.head is not None
        head = None if teacher is None else teacher.head
        task, prediction, hits = vocabulary_sums(self.implementation, student.head, head, labels, self.temperature)
        count, agreeing = (labels != IGNORED_LABEL).sum(), None if head is None else hits[1]
        return self._named(task, prediction), Hits(count, hits[0], agreeing)

    def sums_and_scores(
        self, student: Features, teacher: Features | None, labels: Tensor
    ) -> tuple[dict[str, Tensor], TokenScores]:
        """The same sums without gradients, and how every position is predicted; labels [B, T]."""
        if student.logits is not None:
            whole = None if teacher is None else teacher.logits
            return self._from_logits(student, teacher, labels), token_scores(student.logits, whole, labels)
        assert self.implementation != "reference" and student.head is not None
        head = None if teacher is None else teacher.head
        scores = vocabulary_scores(self.implementation, student.head, head, labels, self.temperature)
        divergence = scores.loss.new_zeros(()) if scores.divergence is None else scores.divergence
        return self._named(scores.loss.sum().float(), divergence.sum().float()), scores

    def scores(self, shown: Features, labels: Tensor) -> TokenScores:
        """How one model alone predicts every position; labels [B, T]."""
        if shown.logits is not None:
            return token_scores(shown.logits, None, labels)
        assert self.implementation != "reference" and shown.head is not None
        return vocabulary_scores(self.implementation, shown.head, None, labels, self.temperature)

    def _named(self, task: Tensor, prediction: Tensor) -> dict[str, Tensor]:
        return {name: value for name, value in zip(TERMS, (task, prediction), strict=True) if name in self.active}

    def _from_logits(self, student: Features, teacher: Features | None, labels: Tensor) -> dict[str, Tensor]:
        assert student.logits is not None
        wanted = [name for name in TERMS if name in self.active]
        if wanted == ["task", "prediction"] and self.temperature == 1.0:  # one softmax serves both
            return self._named(*task_and_prediction_sums(student.logits, _logits(teacher), labels))
        sums = {}
        if "task" in wanted:
            sums["task"] = task_sum(student.logits, labels)
        if "prediction" in wanted:
            sums["prediction"] = prediction_sum(student.logits, _logits(teacher), labels, self.temperature)
        return sums


def _logits(teacher: Features | None) -> Tensor:
    assert teacher is not None, "the recipe rules refuse distillation weights without a teacher"
    assert teacher.logits is not None
    return teacher.logits
