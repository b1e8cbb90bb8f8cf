"""The sums over the vocabulary and what is predicted there: from whole logits, or from their factors in blocks.

Training counts hits; validation wants to know them position by position, because it sums by task and counts examples
whose every token is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distill_engine.losses.divergences.forward_kl import FORWARD_KL
from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.losses.kernels.dispatch import Implementation, vocabulary_scores, vocabulary_sums
from distill_engine.losses.kernels.prediction import divergence_sum, task_and_prediction_sums, task_sum
from distill_engine.losses.quality import TokenScores, accuracy_counts, token_scores
from distill_engine.losses.top_tokens import beside_student
from distill_engine.values import Features


class Hits(NamedTuple):
    """Label positions of a micro-batch, each [] (no gradient).

    labels    all
    correct   where the student predicts the label
    agreeing  where student and teacher predict the same token; None without a teacher
    """

    labels: Tensor
    correct: Tensor
    agreeing: Tensor | None


class Sums(NamedTuple):
    """Sums over label positions, [] float32 (terms.protocol.VocabularySums)."""

    task: Tensor
    divergence: Tensor


@dataclass(frozen=True)
class Vocabulary:
    """How the sums are computed. `task`, `divergence`: whether anybody asks for them."""

    task: bool
    divergence: bool
    implementation: Implementation
    temperature: float
    measure: Divergence = FORWARD_KL

    def sums_and_hits(
        self, student: Features, teacher: Features | None, labels: Tensor, count: Tensor
    ) -> tuple[Sums, Hits]:
        """With gradients for the student; labels [B, T], count [] of label tokens."""
        if not self._in_blocks(student):
            assert student.logits is not None
            whole = None if teacher is None else teacher.logits
            correct, agreeing = accuracy_counts(student.logits.detach(), whole, labels)
            return self._from_logits(student, teacher, labels), Hits(count, correct, agreeing)
        assert student.head is not None
        head = None if teacher is None else teacher.head
        task, divergence, hits = vocabulary_sums(
            self.implementation, student.head, head, labels, self.temperature, self._measured
        )
        return Sums(task, divergence), Hits(count, hits[0], None if head is None else hits[1])

    def sums_and_scores(self, student: Features, teacher: Features | None, labels: Tensor) -> tuple[Sums, TokenScores]:
        """The same sums without gradients, and how every position is predicted; labels [B, T]."""
        if not self._in_blocks(student):
            assert student.logits is not None
            whole = None if teacher is None else teacher.logits
            return self._from_logits(student, teacher, labels), token_scores(student.logits, whole, labels)
        assert student.head is not None
        head = None if teacher is None else teacher.head
        scores = vocabulary_scores(self.implementation, student.head, head, labels, self.temperature, self._measured)
        divergence = scores.loss.new_zeros(()) if scores.divergence is None else scores.divergence
        return Sums(scores.loss.sum().float(), divergence.sum().float()), scores

    def scores(self, features: Features, labels: Tensor) -> TokenScores:
        """How one model alone predicts every position; labels [B, T]."""
        if features.logits is not None:
            return token_scores(features.logits, None, labels)
        assert self.implementation != "reference" and features.head is not None
        return vocabulary_scores(self.implementation, features.head, None, labels, self.temperature)

    def _in_blocks(self, student: Features) -> bool:
        return self.implementation != "reference" and student.head is not None

    @property
    def _measured(self) -> Divergence:
        """Another divergence than the kernels' own costs passes of its own: only where it is asked for."""
        return self.measure if self.divergence else FORWARD_KL

    def _from_logits(self, student: Features, teacher: Features | None, labels: Tensor) -> Sums:
        assert student.logits is not None
        if self.task and self.divergence and self.temperature == 1.0 and self.measure is FORWARD_KL:
            right = _logits(teacher, student.logits)
            return Sums(*task_and_prediction_sums(student.logits, right, labels))  # one softmax serves both
        none = student.logits.new_zeros((), dtype=torch.float32)
        task = task_sum(student.logits, labels) if self.task else none
        if not self.divergence:
            return Sums(task, none)
        right = _logits(teacher, student.logits)
        return Sums(task, divergence_sum(self.measure, student.logits, right, labels, self.temperature))


def _logits(teacher: Features | None, student_logits: Tensor) -> Tensor:
    assert teacher is not None, "the recipe rules refuse distillation weights without a teacher"
    assert teacher.logits is not None
    if teacher.kept is None:
        return teacher.logits
    return beside_student(teacher.logits, teacher.kept, student_logits)
