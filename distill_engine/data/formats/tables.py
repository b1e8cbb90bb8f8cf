"""Rows with columns, from files and from the Hugging Face Hub; a broken row is told in its place, the others follow.

JSON lines, CSV and TSV go on behind a row that cannot be read; a JSON list, Parquet and Arrow cannot. CSV and TSV begin
with a line of column names; fields with the separator, quotes or line breaks stand between double quotes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from distill_engine.data.episodes import Split
from distill_engine.data.errors import DataError, shown
from distill_engine.data.formats.hf_datasets import SPLIT_NAMES, json_lines, opened, streamed
from distill_engine.data.formats.text_files import LONGEST_LINE_BYTES, numbered_lines
from distill_engine.recipe.problem import did_you_mean

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Table:
    """Columns, and rows with their places: objects, or what is wrong with one."""

    title: str
    columns: frozenset[str]
    rows: Iterator[tuple[str, object]]

    def require(self, column: str, key: str, title: str) -> None:
        """Raises DataError where there is no such column, which `key` of the dataset `title` names."""
        if column not in self.columns:
            known = sorted(self.columns)
            raise DataError(
                f"{self.title} has no column {column!r} ({key} of {title!r}). Its columns are: "
                f"{', '.join(known) or '(none)'}. {did_you_mean(column, known)} Correct `{key}` in data.tasks."
            )


def open_table(path: str, split: Split) -> Table:
    """The rows of a file, or of a split in a folder. Raises DataError where there is none that can be read."""
    suffix = Path(path).suffix
    if Path(path).expanduser().is_dir() or suffix not in (".jsonl", *_SEPARATORS):
        held = opened(path, split)
        return Table(path, held.columns, held.rows)
    rows = _separated(path, _SEPARATORS[suffix]) if suffix in _SEPARATORS else json_lines(path)
    first: list[tuple[str, object]] = []
    columns: frozenset[str] = frozenset()
    for placed in rows:  # up to the first row that is whole
        first.append(placed)
        if isinstance(placed[1], Mapping):
            columns = frozenset(map(str, placed[1]))
            break
    if not columns and first and isinstance(first[0][1], DataError):
        raise first[0][1]
    return Table(path, columns, chain(first, rows))


def _separated(path: str, separator: str) -> Iterator[tuple[str, object]]:
    """Rows of a file with a header line. Where a quote is broken, reading goes on with the next line."""
    csv.field_size_limit(LONGEST_LINE_BYTES)
    lines = _Lines(path)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    rule = f"Fields stand between {separator!r}; one that holds it, a quote or a line break stands in double quotes"
    header: list[str] | None = None
    while True:
        start = lines.number + 1
        where = f"{path}, line {start}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield where, DataError(f"{where}: a broken quote or field ({error}). {rule}, and quotes in it twice.")
            continue
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = fields
            if len(set(header)) < len(header):
                raise DataError(f"{where}: a column name comes twice in {shown(header)}. Names differ. Rename one.")
        elif len(fields) != len(header):
            what = f"{len(fields)} fields, but the header has {len(header)}: {shown(separator.join(fields))}"
            yield where, DataError(f"{where}: {what}. {rule}. Correct the line.")
        else:
            yield where, dict(zip(header, fields, strict=True))


class _Lines:
    """A file's lines with their line breaks, and how many were read."""

    def __init__(self, path: str) -> None:
        self._lines = numbered_lines(path)
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.number, content = next(self._lines)
        return f"{content}\n"


# -- datasets of the Hub by name -----------------------------------------------------------------------------------


def hub_dataset(name: str, config: str | None, revision: str | None, split: Split) -> Any:
    """A split as the library holds it. Raises DataError."""
    return _loaded(name, config, revision)[_split_name(name, config, revision, split)]


def hub_table(name: str, config: str | None, revision: str | None, split: Split) -> Table:
    """The rows of a split, streamed from the library's own cache on this machine. Raises DataError."""
    held = streamed(hub_dataset(name, config, revision, split), f"{name}, {split}")
    return Table(name, held.columns, held.rows)


def hub_files(name: str, config: str | None, revision: str | None, split: Split) -> list[Path]:
    """The files that hold a split on this machine. Raises DataError."""
    held = hub_dataset(name, config, revision, split)
    return sorted(Path(file["filename"]) for file in held.cache_files)


def hub_splits(name: str, config: str | None, revision: str | None) -> set[Split]:
    """The splits that a dataset has. Raises DataError."""
    return {split for split, names in SPLIT_NAMES.items() if set(names) & set(_loaded(name, config, revision))}


def _split_name(name: str, config: str | None, revision: str | None, split: Split) -> str:
    held = _loaded(name, config, revision)
    found = next((one for one in SPLIT_NAMES[split] if one in held), None)
    if found is None:
        raise DataError(f"{name} has no {split} split; it has {', '.join(held)}. Name another dataset, or files.")
    return found


@lru_cache(maxsize=8)
def _loaded(name: str, config: str | None, revision: str | None) -> Mapping[str, Any]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"dataset {name!r} needs the package `datasets`, which is not installed. Install it with "
            "`pip install 'distill-engine[datasets]'`, or name files."
        ) from error
    try:
        held: Mapping[str, Any] = load_dataset(name, config, revision=revision)
    except Exception as error:  # without a network, or for a wrong name, the library raises nearly anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise DataError(
            f"dataset {name!r}{f' ({config})' if config else ''} cannot be had ({type(error).__name__}: {reason}). It "
            "is a name on the Hugging Face Hub, or a folder. Correct it, or download it on a node with network access "
            "first (HF_HOME says where it goes)."
        ) from error
    return held
