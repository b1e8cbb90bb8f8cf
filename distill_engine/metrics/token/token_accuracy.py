"""How often the label is ranked first, by the student and by its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_engine.metrics.protocol import Better, TokenMetric

if TYPE_CHECKING:
    from torch import Tensor

    from distill_engine.metrics.scores import Scores


class TokenAccuracy(TokenMetric):
    """Share of label tokens."""

    name, unit, parlai = "token_accuracy", "share", "token_acc"
    better: Better = "max"
    meaning = "label tokens that the student ranks first"
    short = "token accuracy"

    def sums(self, scores: Scores) -> Sequence[Tensor]:
        """See TokenMetric."""
        return scores.correct, scores.tokens


class TeacherAccuracy(TokenAccuracy):
    """What to expect of the student: it does not change."""

    name, needs, parlai = "teacher_token_accuracy", "teacher", ""
    better: Better = "neither"
    meaning = "label tokens that the teacher itself ranks first"
    short = "teacher's accuracy"

    def sums(self, scores: Scores) -> Sequence[Tensor]:
        """See TokenMetric."""
        return scores.teacher_correct, scores.tokens


TOKEN_ACCURACY = TokenAccuracy()
TEACHER = TeacherAccuracy()
