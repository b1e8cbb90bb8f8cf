"""Dialogue tasks by name: which reader a task has, and its episodes.

A reader is one entry of `READERS`; a file format also needs a file for each split that is used.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from distill_engine.data.conversations import read_conversations
from distill_engine.data.episodes import Episode, LabelTurns, Split, TaskSpec, Turn
from distill_engine.data.errors import DataError
from distill_engine.data.parlai_text import read_parlai_text
from distill_engine.data.text_files import open_for_reading

__all__ = ["READERS", "DataError", "Episode", "LabelTurns", "Reader", "Split", "TaskSpec", "Turn"]


@dataclass(frozen=True)
class Reader:
    """How a task's episodes are got.

    read        (spec, split) -> episodes, all of them or at least as many as the split's limit asks for
    needs_file  the recipe names a file for each split
    """

    read: Callable[[TaskSpec, Split], list[Episode]]
    needs_file: bool


def _parlai_text(spec: TaskSpec, split: Split) -> list[Episode]:
    return read_parlai_text(_named_file(spec, split))


def _conversations(spec: TaskSpec, split: Split) -> list[Episode]:
    return read_conversations(_named_file(spec, split), spec.label_turns)


def _demo(spec: TaskSpec, split: Split) -> list[Episode]:
    # Imported here because the generator is only needed by those who ask for it, and imports this module itself.
    from distill_engine.data.demo import demo_episodes

    return demo_episodes(split, spec.limit(split), spec.seed)


READERS: dict[str, Reader] = {
    "parlai_text": Reader(_parlai_text, needs_file=True),
    "conversations": Reader(_conversations, needs_file=True),
    "demo": Reader(_demo, needs_file=False),
}


def reader_for(name: str) -> Reader:
    """The reader of a task. Raises DataError when there is none."""
    if name in READERS:
        return READERS[name]
    near = difflib.get_close_matches(name, READERS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise DataError(
        f"There is no reader for the task {name!r} (data.tasks).{hint} Readers: {', '.join(sorted(READERS))}. "
        "Choose one of them, or write the task as ParlAI text and name the files under parlai_text."
    )


def has_split(spec: TaskSpec, split: Split) -> bool:
    """Whether the recipe gives this task the split. Raises DataError when the task has no reader."""
    return not reader_for(spec.name).needs_file or spec.file(split) is not None


def check_source(spec: TaskSpec, split: Split) -> None:
    """Everything about a split that can be told without reading it: reader, file named, there, readable.

    Raises DataError.
    """
    if reader_for(spec.name).needs_file:
        open_for_reading(_named_file(spec, split)).close()


def read_task(spec: TaskSpec, split: Split) -> list[Episode]:
    """The episodes of one split in the source's order, cut to the split's limit of examples.

    Raises DataError: no reader, no file named, a malformed file, or not one example in it.
    """
    episodes = first_examples(reader_for(spec.name).read(spec, split), spec.limit(split))
    if not any(episode.turns for episode in episodes):
        source = spec.file(split) or spec.name
        raise DataError(
            f"{source} holds no example for the {split} split of task {spec.title!r}. An example is a text with its "
            "answer. Check the file, label_turns and the limits in data.tasks."
        )
    return episodes


def first_examples(episodes: list[Episode], limit: int | None) -> list[Episode]:
    """The episodes that hold the first `limit` examples; the last one is cut. None: all of them."""
    if limit is None:
        return episodes
    kept: list[Episode] = []
    for episode in episodes:
        if limit <= 0:
            break
        kept.append(Episode(episode.turns[:limit]))
        limit -= len(episode.turns)
    return kept


def _named_file(spec: TaskSpec, split: Split) -> str:
    file = spec.file(split)
    if file is None:
        raise DataError(
            f"Task {spec.title!r} names no {split} file (data.tasks). {spec.name} reads one file for each split. "
            f"Add `{split}: FILE` to the task."
        )
    return file
