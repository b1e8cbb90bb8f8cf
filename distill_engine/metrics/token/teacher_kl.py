"""How far the student's next-token distribution is from the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_engine.metrics.protocol import TokenMetric

if TYPE_CHECKING:
    from torch import Tensor

    from distill_engine.metrics.scores import Scores


class TeacherKL(TokenMetric):
    """Nats per label token."""

    name, unit, better, needs = "teacher_kl", "nats/token", "min", "divergence"
    meaning = "KL divergence from the teacher's next-token distribution, at temperature 1 (`distill evaluate`)"
    short = "KL to teacher"

    def sums(self, scores: Scores) -> Sequence[Tensor]:
        """See TokenMetric."""
        return scores.divergence, scores.tokens


TEACHER_KL = TeacherKL()
