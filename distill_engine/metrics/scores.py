"""What token metrics are given: sums over the label positions of each example, each computed once for all metrics."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from distill_engine.values import Batch

if TYPE_CHECKING:
    from torch import Tensor

    from distill_engine.losses.quality import TokenScores


class Scores:
    """How one micro-batch was predicted. Properties are [B] float64, 0 for a dummy example without any label.

    student  of every label position, [B, T] each
    teacher  the same of the teacher itself, where that was asked for
    """

    def __init__(self, student: TokenScores, batch: Batch, teacher: TokenScores | None = None) -> None:
        self.student = student
        self.teacher = teacher
        self.batch = batch

    @cached_property
    def tokens(self) -> Tensor:
        """Label tokens."""
        return self.batch.label_mask.sum(dim=1).double()

    @cached_property
    def examples(self) -> Tensor:
        """1 for an example that has labels."""
        return self.batch.label_mask.any(dim=1).double()

    @cached_property
    def loss(self) -> Tensor:
        """-log p(label), nats."""
        return self.student.loss.double().sum(dim=1)

    @cached_property
    def correct(self) -> Tensor:
        """Label tokens that the student ranks first."""
        return self.student.correct.sum(dim=1).double()

    @cached_property
    def exact(self) -> Tensor:
        """1 for an example whose every label token the student ranks first."""
        return self.examples * (self.correct == self.tokens).double()

    @cached_property
    def agreeing(self) -> Tensor:
        """Label tokens where student and teacher rank the same token first."""
        assert self.student.agreeing is not None, "asked for without a teacher"
        return self.student.agreeing.sum(dim=1).double()

    @cached_property
    def divergence(self) -> Tensor:
        """KL(teacher || student), nats."""
        assert self.student.divergence is not None, "asked for without a teacher"
        return self.student.divergence.double().sum(dim=1)

    @cached_property
    def teacher_loss(self) -> Tensor:
        """-log p(label) of the teacher, nats."""
        assert self.teacher is not None, "asked for without a teacher"
        return self.teacher.loss.double().sum(dim=1)

    @cached_property
    def teacher_correct(self) -> Tensor:
        """Label tokens that the teacher ranks first."""
        assert self.teacher is not None, "asked for without a teacher"
        return self.teacher.correct.sum(dim=1).double()
