"""Replies that say nothing, or the same as others."""

from __future__ import annotations

from collections.abc import Sequence

from distill_engine.metrics.protocol import TextMetric
from distill_engine.metrics.text.words import mean


class Empty(TextMetric):
    """Share of replies."""

    name, unit, better = "empty", "share", "min"
    meaning = "replies without a word"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        return mean([not reply.split() for reply in hypotheses])


class Unique(TextMetric):
    """Share of replies."""

    name, unit, better = "unique", "share", "max"
    meaning = "different texts among the replies"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        return len(set(hypotheses)) / len(hypotheses)


EMPTY = Empty()
UNIQUE = Unique()
