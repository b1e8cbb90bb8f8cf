"""Conversations: the model answers, with everything said before as its context, by ParlAI's rules.

`name` chooses where they come from: the demo's generator, a file format, or a dialogue dataset below data.root.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill_engine.data.kinds.dialogue_source import (
    DIALOGUE_DATASETS,
    FILE_DATASETS,
    FOLDER_DATASETS,
    READABLE_DATASETS,
    DialogueSource,
)
from distill_engine.data.kinds.files import file_problems, neighbour
from distill_engine.data.kinds.protocol import Guess, Kind, Reading, Source, Writer
from distill_engine.recipe.problem import Problem, did_you_mean

if TYPE_CHECKING:
    from distill_engine.data.episodes import Episode, Split

SPLITS = ("train", "valid", "test")


class Dialogue(Kind):
    """Turns of conversations, each with the history before it; contexts keep their last tokens, as ParlAI's."""

    name, meaning, keep, metrics = "dialogue", "conversations: a reply to everything said before", "last", ("f1", "ppl")
    Options = DialogueSource

    def has(self, source: Source, split: Split) -> bool:
        """See Kind: only sources of files may lack one."""
        return source.name not in FILE_DATASETS or source.file(split) is not None

    def files(self, source: Source, split: Split, root: str | None) -> list[Path]:
        """See Kind."""
        from distill_engine.data.readers import source_files

        return source_files(_own(source).spec(root), split)

    def facts(self, source: Source, split: Split) -> Mapping[str, object]:
        """See Kind: some readers treat splits differently."""
        return {**super().facts(source, split), "split": split}

    def read(self, source: Source, split: Split, reading: Reading) -> Iterator[Episode]:
        """See Kind."""
        from distill_engine.data.readers import stream_dataset

        return stream_dataset(_own(source).spec(reading.root), split)

    def guess(self, data: Mapping[str, str]) -> Guess | None:
        """See Kind: by the first line of a text file, or by the columns of a copy in Hugging Face's form."""
        named = _format_of(data["train"])
        if named is None:
            return None
        return Guess({"name": named[0], **data}, f"{data['train']} is read as {named[0]}, because {named[1]}")

    def writer(self, source: Source, folder: Path) -> Writer:
        """See Kind: a conversation that ends with the answer."""
        from distill_engine.data.formats.conversations import as_line

        return Writer(lambda entries, answer, _: as_line(entries, answer))

    def entry(self, source: Source) -> Mapping[str, object]:
        """See Kind."""
        return {"name": "conversations", "label_turns": "last"}

    def problems(self, source: Source, root: str | None) -> Iterator[Problem]:
        """See Kind."""
        own = _own(source)
        if own.name not in READABLE_DATASETS:
            rule = f"The datasets are: {', '.join(READABLE_DATASETS)}"
            what = f"is {own.name!r}, an unknown dataset"
            yield Problem("name", what, rule, did_you_mean(own.name, READABLE_DATASETS))
        yield from _files(own)
        yield from _other_datasets_have_no_files(own)
        if own.topic_split and own.name != "wizard_of_wikipedia":
            what = f"is true, but the dataset is {own.name!r}"
            yield Problem("topic_split", what, "Only wizard_of_wikipedia has a topic split", "Remove it")
        if not own.normalized and own.name != "hf_dataset":
            rule = "It says how hf_dataset spells ConvAI2's dialogues; convai2 and convai2:normalized say so by name"
            yield Problem("normalized", f"is false, but the dataset is {own.name!r}", rule, "Remove it")

    def problems_of_all(self, sources: Sequence[Source], root: str | None) -> Iterator[Problem]:
        """See Kind: downloaded datasets have a folder under data.root, laid out as ParlAI does."""
        named = [name for name in dict.fromkeys(one.name for one in sources) if name in DIALOGUE_DATASETS]
        fetched = list(dict.fromkeys(name.partition(":")[0] for name in named))
        rule = "Dialogue datasets are read from data.root, a folder laid out as ParlAI's `data`"
        if named and root is None:
            fix = f"Name that folder; `distill data fetch {' '.join(fetched)} --root FOLDER` fills one"
            yield Problem("data.root", f"is null, but data.tasks has {', '.join(named)}", rule, fix)
        elif named and root is not None and not Path(root).expanduser().is_dir():
            fix = neighbour(Path(root)) or f"Correct it, or `distill data fetch {' '.join(fetched)} --root {root}`"
            yield Problem("data.root", f"is {root!r}, which is no folder", rule, fix)
        elif root is not None:
            for name in fetched:
                folder = Path(root).expanduser() / DIALOGUE_DATASETS[name]
                if not folder.is_dir():
                    fix = f"Correct data.root, or `distill data fetch {name} --root {root}`"
                    yield Problem("data.root", f"is {root!r}, but there is no folder {folder} in it", rule, fix)


def _format_of(path: str) -> tuple[str, str] | None:
    """Name of the reader, and what tells it."""
    from distill_engine.data.errors import DataError
    from distill_engine.data.formats.hf_datasets import dataset_of, opened
    from distill_engine.data.formats.text_files import numbered_lines

    place = Path(path).expanduser()
    if place.is_dir() or place.suffix in (".parquet", ".arrow", ".json"):
        try:
            return "hf_dataset", f"its columns are those of {dataset_of(opened(path, 'train').columns, path).title}"
        except DataError:
            return None
    if not place.is_file():
        return None
    first = next((content for _, content in numbered_lines(path) if content.strip()), "")
    if first.startswith("text:") and "\tlabels:" in first:
        return "parlai_text", "its first line has the fields text: and labels:"
    if first.startswith("{") and '"dialog"' in first:
        return "conversations", "its first line has a list of turns under dialog"
    if first[:1].isdigit() and "\t" in first and place.suffix not in (".csv", ".tsv"):
        return "fbdialog", "its first line begins with a number and has its answer behind a tab"
    return None


def _own(source: Source) -> DialogueSource:
    assert isinstance(source, DialogueSource), type(source)
    return source


def _files(source: DialogueSource) -> Iterator[Problem]:
    """A dataset that reads files names a training file, and each named file can be read."""
    if source.name not in FILE_DATASETS:
        return
    if source.train is None:
        rule = f"A {source.name} dataset reads files"
        yield Problem("train", "is missing", rule, "Name the training file")
    yield from file_problems(source, may_be_folder=source.name in FOLDER_DATASETS)


def _other_datasets_have_no_files(source: DialogueSource) -> Iterator[Problem]:
    """The demo makes its dialogues and downloaded datasets lie in data.root; a file named for them would be ignored."""
    sources = {"demo": "the demo makes its own dialogues"}
    sources |= {name: f"{name} is read from data.root" for name in DIALOGUE_DATASETS}
    named = [split for split in SPLITS if getattr(source, split) is not None]
    if source.name in sources and named:
        what = f"is {getattr(source, named[0])!r}, but {sources[source.name]}"
        fix = f"Remove {', '.join(named)}, or set name: {' or '.join(FILE_DATASETS)}"
        yield Problem(named[0], what, fix=fix)


KIND = Dialogue()
