"""How often student and teacher would say the same token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_engine.metrics.protocol import TokenMetric

if TYPE_CHECKING:
    from torch import Tensor

    from distill_engine.metrics.scores import Scores


class TeacherAgreement(TokenMetric):
    """Share of label tokens."""

    name, unit, better, needs, parlai = "teacher_agreement", "share", "max", "agreement", "teacher_acc"
    meaning = "label tokens where student and teacher rank the same token first"
    short = "agrees with teacher"

    def sums(self, scores: Scores) -> Sequence[Tensor]:
        """See TokenMetric."""
        return scores.agreeing, scores.tokens


TEACHER_AGREEMENT = TeacherAgreement()
