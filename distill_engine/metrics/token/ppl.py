"""Perplexity, of the student and of its teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_engine.metrics.protocol import Better, TokenMetric

if TYPE_CHECKING:
    from torch import Tensor

    from distill_engine.metrics.scores import Scores


_LARGEST = 700.0  # nats: exp of more is no float


class Perplexity(TokenMetric):
    """exp of the loss per label token; infinite where that is no number any more."""

    name, unit = "ppl", ""
    better: Better = "min"
    meaning = "perplexity per label token, as ParlAI reports it"
    short = "ppl"

    def sums(self, scores: Scores) -> Sequence[Tensor]:
        """See TokenMetric."""
        return scores.loss, scores.tokens

    def value(self, sums: Sequence[float]) -> float:
        """See TokenMetric."""
        loss = sums[0] / sums[1]
        return math.exp(loss) if loss < _LARGEST else math.inf


class TeacherPerplexity(Perplexity):
    """What to expect of the student: it does not change."""

    name, needs = "teacher_ppl", "teacher"
    better: Better = "neither"
    meaning = "perplexity of the teacher itself"
    short = "teacher's ppl"

    def sums(self, scores: Scores) -> Sequence[Tensor]:
        """See TokenMetric."""
        return scores.teacher_loss, scores.tokens


PPL = Perplexity()
TEACHER = TeacherPerplexity()
