"""Conversations JSONL: one conversation a line, learnt from one speaker's side or from both.

    {"dialog": [[{"id": "a", "text": "hello"}, {"id": "b", "text": "hi"}], [{"id": "a", "text": "bye"}]]}

The inner lists are joined. Turns whose `id` is `context`, and everything beside `dialog`, are left out. The first
speaker's opening answers `__SILENCE__`; a last turn that nobody answers is dropped. `both` gives two episodes of a
conversation, the first speaker's before the second's. `last`: the last turn alone is learnt, all before it is history.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from distill_engine.data.episodes import Episode, LabelTurns, Turn
from distill_engine.data.errors import DataError, shown
from distill_engine.data.formats.records import checked_text
from distill_engine.data.formats.text_files import numbered_lines

SILENCE = "__SILENCE__"

_SHAPE = 'A line is {"dialog": [[{"id": "...", "text": "..."}, ...], ...]}. Correct the line.'


def read_conversations(path: str, label_turns: LabelTurns) -> Iterator[Episode]:
    """The episodes of a file, in its order. Blank lines mean nothing.

    Raises DataError with file and line number: not JSON, another shape, a turn without text; and as
    `numbered_lines` does.
    """
    for number, content in numbered_lines(path):
        if content.strip():
            said = spoken(content, f"{path}, line {number}")
            yield from sides(said, label_turns)


def sides(said: Sequence[str], label_turns: LabelTurns) -> list[Episode]:
    """The episodes that one conversation gives; a side without any answer gives none."""
    if label_turns == "last":
        return _last(said)
    first = _paired([SILENCE, *said])
    second = _paired(said)
    wanted = {"first_speaker": [first], "second_speaker": [second], "both": [first, second]}[label_turns]
    return [Episode(turns) for turns in wanted if turns]


def _last(said: Sequence[str]) -> list[Episode]:
    """Whoever spoke last, as the side that learns."""
    turns = _paired([SILENCE, *said] if len(said) % 2 else said)
    if not turns:
        return []
    return [Episode((*(replace(turn, learnt=False) for turn in turns[:-1]), turns[-1]))]


def as_line(entries: Sequence[str], answer: str) -> dict[str, object]:
    """What `last` reads as the answer to these entries of a history, an odd number; to be written as JSON."""
    texts = [*entries, answer]
    return {"dialog": [[{"id": str(1 + position % 2), "text": text} for position, text in enumerate(texts)]]}


def spoken(content: str, where: str) -> list[str]:
    """The texts of one line's turns in order, context turns left out. Raises DataError as `read_conversations`."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}): {shown(content)}. {_SHAPE}") from error
    groups = record.get("dialog") if isinstance(record, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        raise DataError(f"{where}: no list of lists under `dialog`: {shown(content)}. {_SHAPE}")
    turns = [turn for group in groups for turn in group]
    return [
        _text(turn, f"{where}, turn {position}")
        for position, turn in enumerate(turns, 1)
        if not (isinstance(turn, dict) and turn.get("id") == "context")
    ]


def _text(turn: object, where: str) -> str:
    text = turn.get("text") if isinstance(turn, dict) else None
    if text is None:
        raise DataError(f"{where}: no string under `text`: {shown(turn)}. {_SHAPE}")
    return checked_text(text, where, "text", _SHAPE)


def _paired(said: Sequence[str]) -> tuple[Turn, ...]:
    return tuple(Turn(text, label) for text, label in zip(said[::2], said[1::2], strict=False))
