"""Wizard of Wikipedia from ParlAI's JSON files: the wizard's replies to the apprentice, the topic in front.

The passages that the wizard could look up are not part of the text: ParlAI's default teacher gives them in fields
that a generator does not read.
"""

from __future__ import annotations

from collections.abc import Iterator

from distill_engine.data.episodes import Episode, Split, Turn
from distill_engine.data.formats.json_list import json_list
from distill_engine.data.formats.records import Record

SHAPE = (
    "An episode has `chosen_topic` and `dialog`, a list of objects with `speaker` (it contains Wizard or Apprentice) "
    "and `text`. Correct the file."
)


def file_name(split: Split, topic_split: bool) -> str:
    """The file of a split. Training has one; the others come with seen topics, or with unseen ones."""
    return "train.json" if split == "train" else f"{split}_{'topic' if topic_split else 'random'}_split.json"


def read_wizard_of_wikipedia(path: str) -> Iterator[Episode]:
    """The episodes of one split, in the file's order; a dialogue without an answered turn gives none.

    Raises DataError with file, line and episode: a field is missing or of another type; and as `json_list` does.
    """
    for where, value in json_list(path, "episode"):
        turns = wizard_turns(Record(value, where, SHAPE))
        if turns:
            yield Episode(turns)


def wizard_turns(record: Record) -> tuple[Turn, ...]:
    """The wizard's turns of one dialogue. Raises DataError.

    As in ParlAI, a wizard who opens answers the topic alone, and then its last turn is left out.
    """
    said = record.records("dialog")
    if not said:
        return ()
    topic = record.text("chosen_topic", default="")
    wizard_opens = "Wizard" in said[0].text("speaker")
    first = 0 if wizard_opens else 1
    count = (len(said) - 1) // 2 if wizard_opens else len(said) // 2
    texts = [one.text("text") for one in said]
    return tuple(Turn(_context(topic, texts, at), texts[at]) for at in range(first, first + 2 * count, 2))


def _context(topic: str, texts: list[str], at: int) -> str:
    if at == 0:
        return topic
    return f"{topic}\n{texts[0]}" if at == 1 else texts[at - 1]
