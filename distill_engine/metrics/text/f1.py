"""Words in common with the right answer: ParlAI's `f1`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from distill_engine.metrics.protocol import TextMetric
from distill_engine.metrics.text.words import mean, normalised


def f1(reply: str, references: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall (as multisets) with the best reference; 0 without common words."""
    said = normalised(reply)
    return max((_overlap(said, normalised(reference)) for reference in references), default=0.0)


def _overlap(said: list[str], reference: list[str]) -> float:
    common = sum((Counter(said) & Counter(reference)).values())
    return 2.0 * common / (len(said) + len(reference)) if common else 0.0


class F1(TextMetric):
    """Mean over replies."""

    name, unit, better = "f1", "share", "max"
    meaning = "harmonic mean of word precision and recall"
    short = "F1"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        return mean([f1(reply, right) for reply, right in zip(hypotheses, references, strict=True)])


METRIC = F1()
