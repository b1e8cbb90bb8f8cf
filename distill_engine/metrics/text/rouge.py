"""Overlap with a reference summary (Lin 2004): ROUGE-1, ROUGE-2 and ROUGE-L by Google's rouge-score, with stemming."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from distill_engine.metrics.protocol import TextMetric
from distill_engine.metrics.text.words import mean


class Rouge(TextMetric):
    """Mean F-measure over texts, with the best of several references."""

    unit, better, libraries = "share", "max", ("rouge_score",)

    def __init__(self, name: str, kind: str, meaning: str) -> None:
        self.name, self.meaning = name, meaning
        self._kind = kind

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        pairs = zip(hypotheses, references, strict=True)
        return mean([self._scorer.score_multi(list(right), text)[self._kind].fmeasure for text, right in pairs])

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer([self._kind], use_stemmer=True)


ONE = Rouge("rouge_1", "rouge1", "F-measure of words in common with the reference, stemmed")
TWO = Rouge("rouge_2", "rouge2", "F-measure of pairs of words in common with the reference, stemmed")
LONGEST = Rouge("rouge_l", "rougeL", "F-measure of the longest common sequence of words, stemmed")
