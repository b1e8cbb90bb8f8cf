"""Replies that are the right answer: ParlAI's `accuracy`."""

from __future__ import annotations

from collections.abc import Sequence

from distill_engine.metrics.protocol import TextMetric
from distill_engine.metrics.text.words import mean, normalised


def exact_match(reply: str, golds: Sequence[str]) -> float:
    """1 if the reply equals one of `golds` after normalisation, else 0."""
    return float(any(normalised(reply) == normalised(gold) for gold in golds))


class Accuracy(TextMetric):
    """Share of replies."""

    name, unit, better = "accuracy", "share", "max"
    meaning = "replies equal to the gold one, without case, punctuation and articles"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        return mean([exact_match(reply, gold) for reply, gold in zip(hypotheses, references, strict=True)])


METRIC = Accuracy()
