"""Words in common with the right answer: ParlAI's `f1`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from distill_engine.metrics.protocol import TextMetric
from distill_engine.metrics.text.words import mean, normalised


def f1(reply: str, golds: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall (as multisets) with the best of `golds`; 0 without common words."""
    said = normalised(reply)
    return max((_overlap(said, normalised(gold)) for gold in golds), default=0.0)


def _overlap(said: list[str], gold: list[str]) -> float:
    common = sum((Counter(said) & Counter(gold)).values())
    return 2.0 * common / (len(said) + len(gold)) if common else 0.0


class F1(TextMetric):
    """Mean over replies."""

    name, unit, better = "f1", "share", "max"
    meaning = "harmonic mean of word precision and recall"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        return mean([f1(reply, gold) for reply, gold in zip(hypotheses, references, strict=True)])


METRIC = F1()
