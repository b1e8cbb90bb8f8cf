"""BLEU over SentencePiece tokens of 200 languages (Goyal et al. 2022), also where no spaces divide words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill_engine.metrics.protocol import TextMetric
from distill_engine.metrics.text.bleu import columns_of

_TOKENS = "flores200"


class SpBleu(TextMetric):
    """sacrebleu's BLEU-4 with the FLORES-200 tokens. Their model is downloaded once, by sacrebleu, not by a run."""

    name, unit, better, pooled, libraries = "spbleu", "", "max", True, ("sentencepiece",)
    meaning = "corpus BLEU-4 of sacrebleu over FLORES-200's SentencePiece tokens, 0 to 100"

    def missing(self) -> str:
        """See TextMetric."""
        return super().missing() or ("" if _model().is_file() else _rule())

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        import sacrebleu

        return float(sacrebleu.corpus_bleu(list(hypotheses), columns_of(references), tokenize=_TOKENS).score)


def _model() -> Path:
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    return Path(SACREBLEU_DIR) / "models" / Path(SPM_MODELS[_TOKENS]["url"]).name


def _rule() -> str:
    return (
        f"needs {_model()}, which is not there. Where there is a network, "
        f"`echo a | sacrebleu --tokenize {_TOKENS} <(echo a)` downloads it (SACREBLEU says the folder)."
    )


METRIC = SpBleu()
