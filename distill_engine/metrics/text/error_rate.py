"""Errors of a transcript: insertions, deletions and substitutions over what should have been said (jiwer).

Word and character error rates are of texts without case, punctuation and brackets, by Whisper's language-neutral
normaliser. The English one is by Whisper's normaliser for English, which also writes out contractions and titles, makes
numbers digits, leaves fillers out and spells as Americans do, by the table of whisper-normalizer. The token error rate
takes texts as they are: words and punctuation marks, case included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from distill_engine.metrics.protocol import TextMetric

_TOKEN = re.compile(r"\w+|[^\w\s]")


class ErrorRate(TextMetric):
    """All errors / all words (characters, tokens) of the references, of several the nearest; may exceed 1."""

    unit, better, pooled = "share", "min", True

    def __init__(self, name: str, meaning: str, parts: Callable[[str], list[str]], *libraries: str) -> None:
        self.name, self.meaning, self.libraries = name, meaning, ("jiwer", *libraries)
        self._parts = parts

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See TextMetric."""
        nearest = [self._errors(text, right) for text, right in zip(hypotheses, references, strict=True)]
        return sum(errors for errors, _ in nearest) / max(1, sum(length for _, length in nearest))

    def _errors(self, text: str, references: Sequence[str]) -> tuple[int, int]:
        """Errors and length of the reference with the lowest rate."""
        said = self._parts(text)
        found = [(_edits(self._parts(reference), said), len(self._parts(reference))) for reference in references]
        return min(found, key=lambda one: one[0] / max(1, one[1]))


def _edits(reference: Sequence[str], said: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions."""
    if not reference:  # jiwer refuses to divide by it
        return len(said)
    import jiwer

    # each part as one word without spaces, which jiwer cannot take apart
    numbers = {part: f"w{number}" for number, part in enumerate(dict.fromkeys([*reference, *said]))}
    right, text = (" ".join(numbers[part] for part in parts) for parts in (reference, said))
    counted = jiwer.process_words(right, text)
    return int(counted.insertions + counted.deletions + counted.substitutions)


@cache
def _normaliser() -> Any:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()


def _words(text: str) -> list[str]:
    return str(_normaliser()(text)).split()


@cache
def _english_normaliser() -> Any:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    from whisper_normalizer.english import EnglishSpellingNormalizer

    # the table alone: the text normaliser beside it has a rule that Whisper's has not
    return EnglishTextNormalizer(EnglishSpellingNormalizer().mapping)


def _english_words(text: str) -> list[str]:
    return str(_english_normaliser()(text)).split()


def _characters(text: str) -> list[str]:
    return list(" ".join(_words(text)))


WORDS = ErrorRate("wer", "word error rate after Whisper's basic normaliser", _words)
ENGLISH = ErrorRate(
    "wer_english", "word error rate after Whisper's normaliser for English", _english_words, "whisper_normalizer"
)
CHARACTERS = ErrorRate("cer", "character error rate after Whisper's basic normaliser", _characters)
TOKENS = ErrorRate("token_error_rate", "error rate of words and punctuation marks, case kept", _TOKEN.findall)
