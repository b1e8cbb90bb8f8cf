"""Dialogue datasets by name: which reader a dataset has, where its data lies, and its episodes.

A reader is one entry of `READERS`. A file format needs a file for each split that is used, a downloaded dataset lies
under `data.root` in ParlAI's own folder layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from distill_engine.data.corpora import convai2, wizard_of_wikipedia
from distill_engine.data.corpora.blended_skill_talk import read_blended_skill_talk
from distill_engine.data.corpora.empathetic_dialogues import read_empathetic_dialogues
from distill_engine.data.episodes import Episode, Split
from distill_engine.data.errors import DataError
from distill_engine.data.formats.conversations import read_conversations
from distill_engine.data.formats.fbdialog import read_fbdialog
from distill_engine.data.formats.hf_datasets import opened, read_hf_dataset, split_files
from distill_engine.data.formats.parlai_text import read_parlai_text
from distill_engine.data.kinds.dialogue_source import DialogueSpec
from distill_engine.recipe.problem import did_you_mean

Episodes = Iterable[Episode]


@dataclass(frozen=True)
class Reader:
    """How a dataset's episodes are got.

    read        (spec, split) -> episodes in the source's order, one at a time where the format allows
    needs_file  the recipe names a file for each split
    in_root     (spec, split) -> where the split may lie below `data.root`, the usual place first
    """

    read: Callable[[DialogueSpec, Split], Episodes]
    needs_file: bool = False
    in_root: Callable[[DialogueSpec, Split], tuple[str, ...]] | None = None


def _demo(spec: DialogueSpec, split: Split) -> Episodes:
    # Imported here because the generator is only needed by those who ask for it.
    from distill_engine.data.corpora.demo import demo_episodes

    return demo_episodes(split, spec.limit(split), spec.seed)


def _convai2(spec: DialogueSpec, split: Split) -> Episodes:
    return read_fbdialog(_found_in_root(spec, split))


def _convai2_files(_spec: DialogueSpec, split: Split) -> tuple[str, ...]:
    return tuple(f"ConvAI2/{name}" for name in convai2.file_names(split))


def _empathetic_dialogues_files(_spec: DialogueSpec, split: Split) -> tuple[str, ...]:
    return f"empatheticdialogues/empatheticdialogues/{split}.csv", f"empatheticdialogues/{split}.csv"


READERS: dict[str, Reader] = {
    "parlai_text": Reader(lambda spec, split: read_parlai_text(_named_file(spec, split)), needs_file=True),
    "conversations": Reader(
        lambda spec, split: read_conversations(_named_file(spec, split), spec.label_turns), needs_file=True
    ),
    "fbdialog": Reader(lambda spec, split: read_fbdialog(_named_file(spec, split)), needs_file=True),
    "hf_dataset": Reader(
        lambda spec, split: read_hf_dataset(_named_file(spec, split), split, spec.normalized), needs_file=True
    ),
    "demo": Reader(_demo),
    "blended_skill_talk": Reader(
        lambda spec, split: read_blended_skill_talk(_found_in_root(spec, split)),
        in_root=lambda _, split: (f"blended_skill_talk/{split}.json",),
    ),
    "wizard_of_wikipedia": Reader(
        lambda spec, split: wizard_of_wikipedia.read_wizard_of_wikipedia(_found_in_root(spec, split)),
        in_root=lambda spec, split: (
            f"wizard_of_wikipedia/{wizard_of_wikipedia.file_name(split, spec.topic_split)}",
        ),
    ),
    "convai2": Reader(_convai2, in_root=_convai2_files),
    "convai2:normalized": Reader(
        lambda spec, split: convai2.normalized(_convai2(spec, split)), in_root=_convai2_files
    ),
    "empathetic_dialogues": Reader(
        lambda spec, split: read_empathetic_dialogues(_found_in_root(spec, split), both_sides=split == "train"),
        in_root=_empathetic_dialogues_files,
    ),
}  # fmt: skip


def reader_for(name: str) -> Reader:
    """The reader of a dataset. Raises DataError when there is none."""
    if name in READERS:
        return READERS[name]
    parts = (
        f"There is no reader for the dataset {name!r} (data.tasks).",
        did_you_mean(name, READERS),
        f"Readers: {', '.join(sorted(READERS))}. Choose one of them, or write the dataset as ParlAI text and name the "
        "files under parlai_text.",
    )
    raise DataError(" ".join(filter(None, parts)))


def source_files(spec: DialogueSpec, split: Split) -> list[Path]:
    """The files that a split is read from; none for a generator.

    Raises DataError: no reader, no file named, no data folder of the dataset.
    """
    reader = reader_for(spec.name)
    if spec.name == "hf_dataset":
        named = _named_file(spec, split)
        opened(named, split)
        return split_files(named, split)
    if reader.in_root is not None:
        return [Path(_found_in_root(spec, split))]
    return [Path(_named_file(spec, split)).expanduser()] if reader.needs_file else []


def stream_dataset(spec: DialogueSpec, split: Split) -> Iterator[Episode]:
    """The episodes of one split in the source's order, cut to the split's limit of examples, one at a time.

    Raises DataError: no reader, no file named, a malformed file, or not one example in it.
    """
    episodes = first_examples(reader_for(spec.name).read(spec, split), spec.limit(split))
    with_turns = (episode for episode in episodes if episode.turns)
    first = next(with_turns, None)
    if first is None:
        source = spec.file(split) or spec.name
        raise DataError(
            f"{source} holds no example for the {split} split of dataset {spec.title!r}. An example is a text with its "
            "answer. Check the file, label_turns and the limits in data.tasks."
        )
    yield from chain([first], with_turns)


def first_examples(episodes: Episodes, limit: int | None) -> Iterator[Episode]:
    """The episodes that hold the first `limit` examples; the last one is cut, the rest not read. None: all of them."""
    if limit is None:
        yield from episodes
        return
    for episode in episodes if limit > 0 else ():
        yield episode.first(limit)
        limit -= episode.examples
        if limit <= 0:
            break


def _named_file(spec: DialogueSpec, split: Split) -> str:
    file = spec.file(split)
    if file is None:
        raise DataError(
            f"Dataset {spec.title!r} names no {split} file (data.tasks). {spec.name} reads one file for each split. "
            f"Add `{split}: FILE` to the dataset."
        )
    return file


def _found_in_root(spec: DialogueSpec, split: Split) -> str:
    """The file of a split of a downloaded dataset. Raises DataError: no root, no such folder, no such file."""
    in_root = reader_for(spec.name).in_root
    assert in_root is not None, spec.name
    if spec.root is None:
        raise DataError(
            f"Dataset {spec.title!r} needs data.root, which is null. It is the folder of the downloaded datasets, "
            f"ParlAI's `data`. Name it; `distill data fetch {_fetched_as(spec)} --root FOLDER` fills it."
        )
    root = Path(spec.root).expanduser()
    places = [root / place for place in in_root(spec, split)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        missing = next((folder for folder in (root, root / places[0].relative_to(root).parts[0], places[0].parent)
                        if not folder.is_dir()), places[0])  # fmt: skip
        raise DataError(
            f"Dataset {spec.title!r} has no {split} split: there is no {places[0]} ({missing} is missing). Datasets "
            f"lie under data.root in ParlAI's own layout. Correct data.root, or run "
            f"`distill data fetch {_fetched_as(spec)} --root {root}`."
        )
    return str(found)


def _fetched_as(spec: DialogueSpec) -> str:
    return spec.name.partition(":")[0]
