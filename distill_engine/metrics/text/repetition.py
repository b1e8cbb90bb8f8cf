"""What a reply has said before (Welleck et al. 2020, "seq-rep-n")."""

from __future__ import annotations

from collections.abc import Sequence

from distill_engine.metrics.protocol import TextMetric
from distill_engine.metrics.text.words import grams, mean

_ORDER = 3  # words: the length that dialogue models' beam searches block, in tokens


def repetition(reply: str) -> float:
    """Share of a reply's word 3-grams that it has said before; 0 if too short."""
    said = grams(reply.lower().split(), _ORDER)
    return 1.0 - len(set(said)) / len(said) if said else 0.0


class Repetition(TextMetric):
    """Mean over replies."""

    name, unit, better = "repetition", "share", "min"
    meaning = "word 3-grams that a reply has said before"
    short = "repetition"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        return mean([repetition(reply) for reply in hypotheses])


METRIC = Repetition()
