"""Replies that are the right answer: ParlAI's `accuracy`."""

from __future__ import annotations

from collections.abc import Sequence

from distill_engine.metrics.protocol import TextMetric
from distill_engine.metrics.text.words import mean, normalised


def exact_match(reply: str, references: Sequence[str]) -> float:
    """1 if the reply equals one of `references` after normalisation, else 0."""
    return float(any(normalised(reply) == normalised(reference) for reference in references))


class Accuracy(TextMetric):
    """Share of replies."""

    name, unit, better = "accuracy", "share", "max"
    meaning = "replies equal to the reference, without case, punctuation and articles"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        return mean([exact_match(reply, right) for reply, right in zip(hypotheses, references, strict=True)])


METRIC = Accuracy()
