"""sacrebleu's corpus BLEU-4, which is not ParlAI's smoothed sentence score `bleu-4`, hence another name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill_engine.metrics.protocol import TextMetric


class Bleu(TextMetric):
    """With sacrebleu's defaults: 13a tokens, case kept, exponential smoothing."""

    name, unit, better, pooled = "bleu", "", "max", True
    meaning = "corpus BLEU-4 of sacrebleu, 0 to 100"
    short = "BLEU"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        import sacrebleu  # here: whoever lists metrics never asks for BLEU

        return float(sacrebleu.corpus_bleu(list(hypotheses), columns_of(references)).score)


def columns_of(references: Sequence[Sequence[str]]) -> Any:
    """The first right answers to all, the second ones, ...; None stands for "no further answer", which sacrebleu's own
    types do not mention."""
    most = max(len(one) for one in references)
    return [[one[index] if index < len(one) else None for one in references] for index in range(most)]


def bleu_signature() -> str:
    """sacrebleu's own short name of how `bleu` is computed, with its version."""
    import sacrebleu

    metric = sacrebleu.BLEU()
    metric.corpus_score(["a b c d"], [["a b c d"]])
    return str(metric.get_signature().format(short=True))


METRIC = Bleu()
