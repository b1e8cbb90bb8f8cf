"""Sources of files, or of a dataset of the Hugging Face Hub: their keys, and whether they can be read at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from distill_engine.data.kinds.protocol import Source
from distill_engine.recipe.problem import Problem, did_you_mean

if TYPE_CHECKING:
    from distill_engine.data.episodes import Split


class HubSource(Source):
    """A source of files, or of a dataset of the Hub by name."""

    dataset: str | None = Field(
        None, description="Instead of files: a dataset of the Hugging Face Hub by name (extra `datasets`)."
    )
    config: str | None = Field(None, description="dataset: its configuration, where it has several.")
    revision: str | None = Field(None, description="dataset: commit or tag; pin it for long runs.")

    @property
    def named_files(self) -> list[str]:
        """The splits that a file is named for."""
        return [split for split in ("train", "valid", "test") if getattr(self, split) is not None]

    def has(self, split: Split) -> bool:
        """Whether there is such a split; of a dataset by name, whether that has it."""
        from distill_engine.data.formats.tables import hub_splits

        if self.dataset is None:
            return self.file(split) is not None
        return split in hub_splits(self.dataset, self.config, self.revision)


def origin_problems(source: HubSource, comes: str, is_read: str) -> Iterator[Problem]:
    """Files and a dataset at once, neither, or keys of a dataset without one; `comes`, `is_read`: subject and verb."""
    files = source.named_files
    if source.dataset is not None and files:
        yield Problem(files[0], "is set beside dataset", f"{comes} from files or a dataset", "Remove one")
    if source.dataset is None and source.train is None:
        rule = f"{is_read} from files, or `dataset` names one of the Hub"
        yield Problem("train", "is missing", rule, "Name the training file")
    for key in ("config", "revision"):
        if source.dataset is None and getattr(source, key) is not None:
            what = f"is {getattr(source, key)!r}, but dataset is null"
            yield Problem(key, what, "It belongs to a dataset of the Hub", "Remove it, or name the dataset")


def file_problems(source: Source, may_be_folder: bool) -> Iterator[Problem]:
    """What is wrong with the file of each split that is named."""
    for split in ("train", "valid", "test"):
        file: str | None = getattr(source, split)
        if file is not None:
            yield from _file_problems(split, file, may_be_folder)


def _file_problems(path: str, file: str, may_be_folder: bool) -> Iterator[Problem]:
    place = Path(file)
    if file == "":
        yield Problem(path, "is an empty text", fix="Name a file, or remove the key")
    elif place.is_dir() and not may_be_folder:
        yield Problem(path, f"is {file!r}, which is a folder", "A dataset reads one file", "Name a file in it")
    elif not place.exists():
        rule = "A relative path starts at the recipe's folder or at the working directory"
        yield Problem(path, f"is {file!r}, which does not exist", rule, neighbour(place))
    elif not (place.is_file() or place.is_dir()):  # opening a pipe waits for a writer, perhaps for ever
        yield Problem(path, f"is {file!r}, which is a pipe or a device", "A dataset reads a file", "Write it to a file")
    elif place.is_file() and place.stat().st_size == 0:
        yield Problem(path, f"is {file!r}, which is empty", "A file holds at least one example")


def neighbour(place: Path) -> str:
    """A file of almost that name, if there is one."""
    folder = place.parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return did_you_mean(place.name, names)
