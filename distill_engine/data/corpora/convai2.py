"""ConvAI2 (Persona-Chat) from ParlAI's text files, as it is or normalised to ordinary spelling.

The files hold every dialogue twice, once from each side, each side with its own persona. There is no test file:
ParlAI tests on the validation split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from distill_engine.data.episodes import Episode, Split, Turn

OWN_PERSONA = "your persona: "
PARTNERS_PERSONA = "partner's persona: "

_ALWAYS_UPPER = frozenset({"i", "i'm", "i've", "i'll", "i'd"})


def file_names(split: Split) -> tuple[str, ...]:
    """Files that hold a split, the usual one first; the one without candidates has the same texts."""
    name = f"{'train' if split == 'train' else 'valid'}_self_original"
    return f"{name}.txt", f"{name}_no_cands.txt"


def normalized(episodes: Iterable[Episode]) -> Iterator[Episode]:
    """The episodes with every text and label normalised."""
    for episode in episodes:
        yield Episode(tuple(Turn(normalize_lines(turn.text), normalize_lines(turn.label)) for turn in episode.turns))


def with_persona(personas: Sequence[str], said: Sequence[tuple[str, str]]) -> Episode:
    """An episode from its persona lines (without prefix) and (text, label) pairs, as ParlAI's files hold it."""
    before = "".join(f"{OWN_PERSONA}{line}\n" for line in personas)
    return Episode(tuple(Turn(text if at else before + text, label) for at, (text, label) in enumerate(said)))


def normalize_lines(text: str) -> str:
    """Every line of `text` normalised; own persona lines come first, then the partner's, then all others."""
    groups: dict[str, list[str]] = {OWN_PERSONA: [], PARTNERS_PERSONA: [], "": []}
    for line in text.split("\n"):
        prefix = next(prefix for prefix in groups if line.startswith(prefix))
        groups[prefix].append(prefix + normalize_reply(line.removeprefix(prefix)))
    return "\n".join(line for lines in groups.values() for line in lines)


def normalize_reply(text: str) -> str:
    """Lower-case spaced text as one would write it: sentence starts and `I` in capitals, no space before a mark.

    Bit for bit ParlAI's version 1: oddities (a decimal point starts a sentence, names stay lower case) are part of
    what its models learnt.
    """
    spaced = text.lower()
    for mark in ".,?!":
        spaced = spaced.replace(mark, f" {mark}").replace("  ", " ")
    words = spaced.replace("'", " ' ").replace("  ", " ").split(" ")
    for at, word in enumerate(words):
        if at == 0 or word in _ALWAYS_UPPER:
            words[at] = _capital(word)
        elif word in "?.!" and at + 1 < len(words):  # the empty word, too
            words[at + 1] = _capital(words[at + 1])
    joined = f" {' '.join(words)} "
    for mark in ".,?!":
        joined = joined.replace(f" {mark}", mark)
    return joined.replace(" ' ", "'").strip().replace("  ", " ")


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]
