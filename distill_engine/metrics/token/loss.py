"""Cross-entropy with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_engine.metrics.protocol import TokenMetric

if TYPE_CHECKING:
    from torch import Tensor

    from distill_engine.metrics.scores import Scores


class Loss(TokenMetric):
    """Nats per label token."""

    name, unit, better = "loss", "nats/token", "min"
    meaning = "cross-entropy with the reference"

    def sums(self, scores: Scores) -> Sequence[Tensor]:
        """See TokenMetric."""
        return scores.loss, scores.tokens


LOSS = Loss()
