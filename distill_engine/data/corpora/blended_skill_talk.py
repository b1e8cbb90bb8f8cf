"""BlendedSkillTalk from ParlAI's JSON files: the guided worker's replies, with persona, topic and seed utterances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.formats.json_list import json_list
from distill_engine.data.formats.parlai_text import as_read_back
from distill_engine.data.formats.records import Record

_SHAPE = (
    "An episode has `personas` (two lists of two texts), `context_dataset`, `free_turker_utterance`, "
    "`guided_turker_utterance` and `dialog` ([speaker, text] pairs, the free worker first). Correct the file."
)


def read_blended_skill_talk(path: str) -> Iterator[Episode]:
    """The episodes of one split, in the file's order; a dialogue that nobody answers gives none.

    Raises DataError with file, line and episode: a field is missing or of another type; and as `json_list` does.
    """
    for where, value in json_list(path, "episode"):
        turns = _turns(Record(value, where, _SHAPE))
        if turns:
            yield Episode(turns)


def opening(personas: Sequence[str], topic: str | None, seeds: Sequence[str]) -> str:
    """What stands before the first message: the guided worker's persona, the topic if there is one, two utterances."""
    lines = [f"your persona: {line}" for line in personas[:2]]
    return "\n".join([*lines, *([] if topic is None else [topic]), *seeds, ""])


def paired(before: str, free: Sequence[str], guided: Sequence[str]) -> tuple[Turn, ...]:
    """The free worker's messages as texts, the guided worker's as labels; `before` comes before the first text."""
    pairs = zip(free, guided, strict=False)
    return tuple(
        Turn(as_read_back(text if number else before + text), as_read_back(label))
        for number, (text, label) in enumerate(pairs)
    )


def _turns(record: Record) -> tuple[Turn, ...]:
    personas = record.items("personas")
    if len(personas) < 2:
        raise record.wrong("`personas` holds no second worker")
    guided = Record({"personas": personas[1]}, record.where, _SHAPE).texts("personas", at_least=2)
    topic = record.text("additional_context") if record.text("context_dataset") == "wizard_of_wikipedia" else None
    seeds = [record.text("free_turker_utterance"), record.text("guided_turker_utterance")]
    said = [_message(message, number, record) for number, message in enumerate(record.items("dialog"), 1)]
    return paired(opening(guided, topic, seeds), said[::2], said[1::2])


def _message(message: object, number: int, record: Record) -> str:
    text = message[1] if isinstance(message, list) and len(message) == 2 else None
    return Record({"dialog": text}, f"{record.where}, message {number}", _SHAPE).text("dialog")
