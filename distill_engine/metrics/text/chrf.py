"""Character n-grams in common, and words (Popovic 2017): sacrebleu's chrF++."""

from __future__ import annotations

from collections.abc import Sequence

from distill_engine.metrics.protocol import TextMetric
from distill_engine.metrics.text.bleu import columns_of


class ChrF(TextMetric):
    """Character 6-grams and word 2-grams of all texts together."""

    name, unit, better, pooled = "chrf", "", "max", True
    meaning = "corpus chrF++ of sacrebleu, 0 to 100"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        import sacrebleu  # here: whoever lists metrics never asks for it

        return float(sacrebleu.corpus_chrf(list(hypotheses), columns_of(references), word_order=2).score)


METRIC = ChrF()
