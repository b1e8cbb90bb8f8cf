"""How long replies and right answers are."""

from __future__ import annotations

from collections.abc import Sequence

from distill_engine.metrics.protocol import TextMetric
from distill_engine.metrics.text.words import mean


class ReplyWords(TextMetric):
    """Mean over replies."""

    name, unit, better = "reply_words", "words", "neither"
    meaning = "length of a reply"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        return mean([len(reply.split()) for reply in hypotheses])


class ReferenceWords(TextMetric):
    """Mean over the first right answers."""

    name, unit, better = "reference_words", "words", "neither"
    meaning = "length of a reference"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        return mean([len(reference[0].split()) for reference in references])


REPLY = ReplyWords()
REFERENCE = ReferenceWords()
