"""The dialogue datasets by the columns of their Hugging Face copies, and data that only looks like them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from distill_engine.data.corpora.blended_skill_talk import opening, paired
from distill_engine.data.corpora.convai2 import normalized as normalized_episodes
from distill_engine.data.corpora.convai2 import with_persona
from distill_engine.data.corpora.empathetic_dialogues import halves, with_commas
from distill_engine.data.corpora.wizard_of_wikipedia import SHAPE as WIZARD_SHAPE
from distill_engine.data.corpora.wizard_of_wikipedia import wizard_turns
from distill_engine.data.episodes import Episode, Split
from distill_engine.data.formats.conversations import SILENCE
from distill_engine.data.formats.records import Record

PlacedRows = Iterable[tuple[str, object]]

_BST_SHAPE = "A row is an episode with `personas`, `previous_utterance`, `free_messages` and `guided_messages` (texts)."
_ED_SHAPE = "A row is an utterance with `conv_id`, `utterance_idx` and `utterance`."
_CHAT_SHAPE = "A row has `personality` (texts) and `utterances`, each with `candidates` and `history` (texts)."
_TURN_SHAPE = "A row is a turn with `conv_id`, `utterance_idx`, `personality`, `candidates` and `history`."


@dataclass(frozen=True)
class HfDataset:
    """A dataset as its Hugging Face copies have it.

    columns  those that tell it from other data
    read     (rows, split, normalized) -> episodes; raises DataError for a row of another shape
    caveat   in what the copy is not ParlAI's data, empty where it is
    """

    title: str
    columns: frozenset[str]
    read: Callable[[PlacedRows, Split, bool], Iterator[Episode]]
    caveat: str = ""


def look_alike(columns: frozenset[str]) -> str:
    """Why data with these columns is not used though its name suggests it; empty when it is no known look-alike."""
    return next((reason for known, reason in _LOOK_ALIKES if known <= columns), "")


def _blended_skill_talk(rows: PlacedRows, _split: Split, _normalized: bool) -> Iterator[Episode]:
    for where, value in rows:
        row = Record(value, where, _BST_SHAPE)
        topic = row.text("additional_context") if row.text("context") == "wizard_of_wikipedia" else None
        before = opening(row.texts("personas", at_least=2), topic, row.texts("previous_utterance", at_least=2)[:2])
        turns = paired(before, row.texts("free_messages"), row.texts("guided_messages"))
        if turns:
            yield Episode(turns)


def _empathetic_dialogues(rows: PlacedRows, split: Split, _normalized: bool) -> Iterator[Episode]:
    conversations: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for where, value in rows:
        row = Record(value, where, _ED_SHAPE)
        conversations[row.text("conv_id")].append((row.number("utterance_idx"), row.text("utterance")))
    for utterances in conversations.values():
        yield from halves(_unbroken(utterances), both_sides=split == "train")


def _unbroken(utterances: list[tuple[int, str]]) -> list[str]:
    """The utterances 1, 2, 3, ... up to the first that is missing, or that has swallowed the lines after it."""
    said: list[str] = []
    for number, text in sorted(utterances):
        if number != len(said) + 1 or "\n" in text:
            break
        said.append(with_commas(text))
    return said


def _persona_chat(rows: PlacedRows, _split: Split, normalized: bool) -> Iterator[Episode]:
    def episodes() -> Iterator[Episode]:
        for where, value in rows:
            row = Record(value, where, _CHAT_SHAPE)
            said = [_exchange(turn) for turn in row.records("utterances")]
            if said:
                yield with_persona(row.texts("personality"), said)

    return normalized_episodes(episodes()) if normalized else episodes()


def _persona_chat_turns(rows: PlacedRows, _split: Split, normalized: bool) -> Iterator[Episode]:
    conversations: dict[str, list[tuple[int, tuple[str, str]]]] = defaultdict(list)
    personas: dict[str, list[str]] = {}
    for where, value in rows:
        row = Record(value, where, _TURN_SHAPE)
        key = str(row.number("conv_id"))
        personas.setdefault(key, row.texts("personality"))
        conversations[key].append((row.number("utterance_idx"), _exchange(row)))
    episodes = (
        with_persona(personas[key], [exchange for _, exchange in sorted(turns)]) for key, turns in conversations.items()
    )
    return normalized_episodes(episodes) if normalized else episodes


def _exchange(turn: Record) -> tuple[str, str]:
    """What was said last, and the true reply, which is the last candidate."""
    text = turn.texts("history", at_least=1)[-1]
    return SILENCE if text.replace(" ", "") == SILENCE else text, turn.texts("candidates", at_least=1)[-1]


def _wizard_of_wikipedia(rows: PlacedRows, _split: Split, _normalized: bool) -> Iterator[Episode]:
    for where, value in rows:
        turns = wizard_turns(Record(value, where, WIZARD_SHAPE))
        if turns:
            yield Episode(turns)


DATASETS: tuple[HfDataset, ...] = (
    HfDataset(
        "BlendedSkillTalk",
        frozenset({"personas", "context", "additional_context", "previous_utterance", "free_messages",
                   "guided_messages"}),
        _blended_skill_talk,
    ),
    HfDataset(
        "EmpatheticDialogues",
        frozenset({"conv_id", "utterance_idx", "prompt", "utterance"}),
        _empathetic_dialogues,
        "this copy lost utterances that begin with a quotation mark; conversations end where one is missing. ParlAI's "
        "own files are complete (distill data fetch empathetic_dialogues)",
    ),
    HfDataset("ConvAI2", frozenset({"personality", "utterances"}), _persona_chat),
    HfDataset(
        "ConvAI2, one row per turn",
        frozenset({"personality", "candidates", "history", "conv_id", "utterance_idx"}),
        _persona_chat_turns,
        "a model has put capitals into this copy; normalising takes most of that back, not all "
        "(distill data fetch convai2)",
    ),
    HfDataset("Wizard of Wikipedia", frozenset({"chosen_topic", "dialog"}), _wizard_of_wikipedia),
)  # fmt: skip

_WIZARD_INSTEAD = "Use ParlAI's own files: `distill data fetch wizard_of_wikipedia`, name: wizard_of_wikipedia."

_LOOK_ALIKES: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"dialog", "bot_profile", "user_profile"}),
        "these are people judging chat bots (conv_ai_2), not the ConvAI2 training dialogues. Use "
        "`distill data fetch convai2`, or a copy with the columns personality and utterances.",
    ),
    (
        frozenset({"input", "output", "meta"}),
        f"this is KILT's cut of Wizard of Wikipedia; topic and turns are lost. {_WIZARD_INSTEAD}",
    ),
    (
        frozenset({"persona", "text"}),
        f"this is a re-cut Wizard of Wikipedia whose topic and turns are lost. {_WIZARD_INSTEAD}",
    ),
)
