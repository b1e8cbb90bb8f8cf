"""How varied replies are (Li et al. 2016, "distinct-n"): ParlAI's `interdistinct-N`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from distill_engine.metrics.protocol import TextMetric
from distill_engine.metrics.text.words import grams, normalised


class InterDistinct(TextMetric):
    """Different word n-grams of all replies / all their n-grams; 0 without any."""

    unit, better, pooled = "share", "max", True

    def __init__(self, order: int, short: str = "") -> None:
        self.name, self.short = f"interdistinct-{order}", short
        self.meaning = f"different word {order}-grams among all of the replies'"
        self._order = order

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]] = ()) -> float:
        """See TextMetric."""
        counts = Counter(gram for reply in hypotheses for gram in grams(normalised(reply), self._order))
        return len(counts) / counts.total() if counts else 0.0


FIRST = InterDistinct(1)
SECOND = InterDistinct(2, "distinct-2")
