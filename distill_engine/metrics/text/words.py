"""Words as metrics compare and count them."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_NO_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalised(text: str) -> list[str]:
    """Words as ParlAI compares them: lower case, punctuation to spaces, then English articles left out."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def grams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    """All runs of `order` words."""
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]


def mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return sum(values) / len(values)
