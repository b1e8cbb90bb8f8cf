"""EmpatheticDialogues from ParlAI's files: comma-separated lines without quoting, `_comma_` for a comma.

Such a file must not go through a CSV reader: a quotation mark at the start of a field would swallow what follows.
Emotion and situation are no part of the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.errors import DataError, shown
from distill_engine.data.formats.text_files import numbered_lines

FIELDS = (8, 9)

_SHAPE = (
    "A line has 8 fields, or 9 with candidates: conv_id, utterance_idx, context, prompt, speaker_idx, utterance, "
    "selfeval, tags; no quoting, a comma in a text is written _comma_. Correct the line, or download the file again."
)


def read_empathetic_dialogues(path: str, both_sides: bool) -> Iterator[Episode]:
    """The episodes of one split, in the file's order; see `halves` for `both_sides`.

    Raises DataError with file and line number: another number of fields, utterances of a conversation that are not
    numbered 1, 2, 3, ...; and as `numbered_lines` does.
    """
    conversation, opened, said = "", "", list[str]()
    for number, content in numbered_lines(path):
        fields = content.strip().split(",")
        if fields == [""] or (number == 1 and fields[0] == "conv_id"):
            continue
        where = f"{path}, line {number}"
        if len(fields) not in FIELDS:
            raise DataError(f"{where}: {len(fields)} fields in {shown(content)}. {_SHAPE}")
        if fields[0] != conversation:
            yield from halves(said, both_sides)
            conversation, said = fields[0], []
        if said:
            _check_number(fields[1], len(said) + 1, where)
            _check_number(opened, 1, f"{path}, conversation {shown(conversation)}")
        else:
            opened = fields[1]
        said.append(with_commas(fields[5]))
    yield from halves(said, both_sides)


def halves(said: Sequence[str], both_sides: bool) -> Iterator[Episode]:
    """The episodes of one conversation: the listener's replies, and with `both_sides` then the speaker's.

    The speaker opens, so the second episode begins with the listener's first reply. A side without a reply gives
    none. ParlAI trains on both sides and measures on the listener's.
    """
    for first in (0, 1) if both_sides else (0,):
        texts, labels = said[first::2], said[first + 1 :: 2]
        turns = tuple(Turn(text, label.strip()) for text, label in zip(texts, labels, strict=False))
        if turns:
            yield Episode(turns)


def with_commas(text: str) -> str:
    """The text with its commas written as commas."""
    return text.replace("_comma_", ",")


def _check_number(found: str, expected: int, where: str) -> None:
    if not found.strip().isdecimal() or int(found) != expected:
        raise DataError(
            f"{where}: utterance_idx is {shown(found)}, but this is utterance {expected} of its conversation. {_SHAPE}"
        )
