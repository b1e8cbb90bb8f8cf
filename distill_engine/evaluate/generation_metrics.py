"""How good generated replies are, from their texts alone.

`f1`, `accuracy` and `interdistinct-N` are ParlAI's metrics of these names and equal its numbers; `bleu` is sacrebleu's
corpus BLEU-4 (0 to 100), which is not ParlAI's smoothed sentence score `bleu-4`, hence another name.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

_NO_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_REPETITION_ORDER = 3  # words: the length that BlenderBot's own beam search blocks, in tokens

CORPUS_METRICS = ("bleu", "interdistinct-1", "interdistinct-2")  # of many replies together, not means over replies


def normalised(text: str) -> list[str]:
    """Words as ParlAI compares them: lower case, punctuation to spaces, then English articles left out."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def f1(reply: str, golds: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall (as multisets) with the best of `golds`; 0 without common words."""
    said = normalised(reply)
    return max((_overlap(said, normalised(gold)) for gold in golds), default=0.0)


def _overlap(said: list[str], gold: list[str]) -> float:
    common = sum((Counter(said) & Counter(gold)).values())
    return 2.0 * common / (len(said) + len(gold)) if common else 0.0


def exact_match(reply: str, golds: Sequence[str]) -> float:
    """1 if the reply equals one of `golds` after normalisation, else 0 (ParlAI's `accuracy`)."""
    return float(any(normalised(reply) == normalised(gold) for gold in golds))


def bleu(replies: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """sacrebleu's corpus BLEU-4 with its defaults (13a tokens, case kept, exponential smoothing), 0 to 100."""
    if not replies:
        return 0.0
    import sacrebleu  # here: training reads this file too, and never asks for BLEU

    most = max(len(one) for one in golds)
    # None stands for "no further answer", which sacrebleu's own types do not mention
    columns: Any = [[one[index] if index < len(one) else None for one in golds] for index in range(most)]
    return float(sacrebleu.corpus_bleu(list(replies), columns).score)


def bleu_signature() -> str:
    """sacrebleu's own short name of how `bleu` is computed, with its version."""
    import sacrebleu

    metric = sacrebleu.BLEU()
    metric.corpus_score(["a b c d"], [["a b c d"]])
    return str(metric.get_signature().format(short=True))


def interdistinct(replies: Sequence[str], order: int) -> float:
    """Different word n-grams of all replies / all their n-grams (Li et al. 2016, "distinct-n"); 0 without any."""
    grams = Counter(gram for reply in replies for gram in _grams(normalised(reply), order))
    return len(grams) / grams.total() if grams else 0.0


def repetition(reply: str) -> float:
    """Share of a reply's word 3-grams that it has said before (Welleck et al. 2020, "seq-rep-n"); 0 if too short."""
    grams = _grams(reply.lower().split(), _REPETITION_ORDER)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def reply_metrics(
    replies: Sequence[str], golds: Sequence[Sequence[str]], tokens: Sequence[int]
) -> dict[str, float]:
    """Named values of one task's replies.

    golds   the right answers to each reply, at least one each
    tokens  generated tokens of each reply, end token included

    `empty` is the share of replies without a word, `unique` the share of different texts among them. No reply gives
    no value. Raises ValueError if the three are not equally long.
    """
    if not len(replies) == len(golds) == len(tokens):
        raise ValueError(f"{len(replies)} replies, {len(golds)} answers and {len(tokens)} lengths do not match.")
    if not replies:
        return {}
    return {
        "f1": _mean([f1(reply, gold) for reply, gold in zip(replies, golds, strict=True)]),
        "accuracy": _mean([exact_match(reply, gold) for reply, gold in zip(replies, golds, strict=True)]),
        "bleu": bleu(replies, golds),
        "interdistinct-1": interdistinct(replies, 1),
        "interdistinct-2": interdistinct(replies, 2),
        "repetition": _mean([repetition(reply) for reply in replies]),
        "reply_tokens": _mean(tokens),
        "reply_words": _mean([len(reply.split()) for reply in replies]),
        "gold_words": _mean([len(gold[0].split()) for gold in golds]),
        "empty": _mean([not reply.split() for reply in replies]),
        "unique": len(set(replies)) / len(replies),
    }


def _grams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
