"""How often every label of a reply is ranked first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_engine.metrics.protocol import TokenMetric

if TYPE_CHECKING:
    from torch import Tensor

    from distill_engine.metrics.scores import Scores


class TokenExactMatch(TokenMetric):
    """Share of examples."""

    name, unit, better, parlai = "token_exact_match", "share", "max", "token_em"
    meaning = "replies whose every token the student ranks first"

    def sums(self, scores: Scores) -> Sequence[Tensor]:
        """See TokenMetric."""
        return scores.exact, scores.examples


TOKEN_EXACT_MATCH = TokenExactMatch()
