"""Whether the files that a source names can be read at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill_engine.data.kinds.protocol import Source
from distill_engine.recipe.problem import Problem, did_you_mean


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
