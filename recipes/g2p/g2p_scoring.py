"""How right pronunciations are: WER and PER, by whichever of a word's pronunciations is nearest.

A word is right if what was said is one of its pronunciations. Its phone errors are the edits (insertions, deletions,
substitutions) to the nearest one; of equally near ones the longest counts, then the first. WER is wrong words / words,
PER is all edits / all phones of those nearest pronunciations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """Counts over all words. Rates are shares, not percent."""

    words: int
    wrong_words: int
    edits: int
    phones: int

    @property
    def wer(self) -> float:
        """Share of words that are wrong."""
        return self.wrong_words / self.words

    @property
    def per(self) -> float:
        """Edits per phone; may be above 1."""
        return self.edits / self.phones


def score(said: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Score:
    """Score of what was `said` for each word of `references`; phones stand between spaces in both, a word that was not
    answered has the empty text.

    Raises KeyError for a word without an answer, ValueError without any word, and for one without a pronunciation.
    """
    if not references:
        raise ValueError("there are no words to score.")
    edits = phones = wrong = 0
    for word, right in references.items():
        if not right or not all(one.split() for one in right):
            raise ValueError(f"{word!r} has an empty pronunciation, or none: {list(right)!r}.")
        errors, length = nearest(said[word].split(), [one.split() for one in right])
        edits, phones, wrong = edits + errors, phones + length, wrong + (errors > 0)
    return Score(len(references), wrong, edits, phones)


def nearest(said: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Edits to the nearest reference, and its length."""
    errors, shorter = min((edit_distance(said, right), -len(right)) for right in references)
    return errors, -shorter


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, left in enumerate(one, start=1):
        diagonal, row[0] = row[0], number
        for column, right in enumerate(other, start=1):
            cheapest = min(row[column] + 1, row[column - 1] + 1, diagonal + (left != right))
            diagonal, row[column] = row[column], cheapest
    return row[-1]
