"""Copies of the dialogue datasets in Hugging Face's form, told apart by their columns.

A source is a folder written by `save_to_disk` (one dataset, or several splits), a folder of Parquet files named after
their split, or one .parquet, .arrow, .json or .jsonl file. Only the folders, Arrow and Parquet need the `datasets`
package; it is imported when one of them is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from distill_engine.data.episodes import Episode, Split
from distill_engine.data.errors import DataError, shown
from distill_engine.data.formats.hf_dialogues import DATASETS, HfDataset, look_alike
from distill_engine.data.formats.json_list import json_list
from distill_engine.data.formats.text_files import numbered_lines

logger = logging.getLogger(__name__)

Rows = Iterator[tuple[str, object]]

SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("validation", "valid", "dev"),
    "test": ("test",),
}
_BATCH_ROWS = 512
_FORMS = (
    "A source is a folder written by save_to_disk, a folder of Parquet files (train-*.parquet, validation-*.parquet), "
    "or a .parquet, .arrow, .json or .jsonl file"
)


@dataclass(frozen=True)
class Source:
    """Columns of a dataset, and its rows with their places; rows hold plain Python values."""

    columns: frozenset[str]
    rows: Rows


def read_hf_dataset(path: str, split: Split, normalized: bool) -> Iterator[Episode]:
    """The episodes of one split. `normalized` matters for ConvAI2's columns only.

    Raises DataError: no such source or split, a package is missing, columns of no dataset or of a look-alike, a row of
    another shape.
    """
    source = opened(path, split)
    dataset = dataset_of(source.columns, path)
    if dataset.caveat:
        logger.warning("%s: %s", path, dataset.caveat)
    yield from dataset.read(source.rows, split, normalized)


def dataset_of(columns: frozenset[str], path: str) -> HfDataset:
    """Which dataset has these columns. Raises DataError for none, and for data that only looks like one."""
    for dataset in DATASETS:
        if dataset.columns <= columns:
            return dataset
    reason = look_alike(columns)
    if reason:
        raise DataError(f"{path} (columns {', '.join(sorted(columns))}): {reason}")
    known = "; ".join(f"{dataset.title}: {', '.join(sorted(dataset.columns))}" for dataset in DATASETS)
    raise DataError(
        f"{path} has the columns {', '.join(sorted(columns)) or '(none)'}, which are no dialogue dataset's. Known are "
        f"{known}. Name another source, or write the dialogues as ParlAI text or conversations JSONL."
    )


def opened(path: str, split: Split) -> Source:
    """The rows of a split. Raises DataError as `read_hf_dataset`."""
    place = Path(path).expanduser()
    readers: dict[str, Callable[[Path], Source]] = {
        ".json": _json,
        ".jsonl": _json,
        ".parquet": _parquet,
        ".arrow": lambda file: streamed(_arrow_file(file), str(file)),
    }
    if place.is_dir():
        return _folder(place, split)
    if place.suffix not in readers:
        what = "is neither a folder nor a file that can be read as a dataset" if place.exists() else "does not exist"
        raise DataError(f"{path} {what}. {_FORMS}. Correct the path in data.datasets.")
    if not place.exists():
        raise DataError(f"There is no file {path} (working folder: {Path.cwd()}). Correct the path in data.datasets.")
    return readers[place.suffix](place)


def held_dataset(path: str, split: Split) -> Any:
    """A split as the `datasets` library holds it, so that any row can be had at any time; Parquet is copied into the
    library's own cache for that. Raises DataError as `opened`."""
    place = Path(path).expanduser()
    opened(path, split)
    saved = _saved_folder(place, split) if place.is_dir() else None
    if saved is not None:
        return _saved(saved)
    if place.suffix == ".arrow":
        return _arrow_file(place)
    try:
        from datasets import Dataset
    except ImportError as error:
        raise _missing("datasets", place) from error
    return Dataset.from_parquet([str(file) for file in split_files(path, split)])


def split_files(path: str, split: Split) -> list[Path]:
    """The files that hold a split, sorted: for whoever wants to know whether the data has changed."""
    place = Path(path).expanduser()
    if not place.is_dir():
        return [place]
    saved = _saved_folder(place, split)
    return _parquet_files(place, split) if saved is None else sorted(p for p in saved.rglob("*") if p.is_file())


def _folder(place: Path, split: Split) -> Source:
    saved = _saved_folder(place, split)
    if saved is not None:
        return streamed(_saved(saved), str(saved))
    files = _parquet_files(place, split)
    if not files:
        held = ", ".join(sorted(entry.name for entry in place.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{place} has no {split} split ({' or '.join(SPLIT_NAMES[split])}); it holds {held}. {_FORMS}. "
            "Name the folder or file of the split."
        )
    parts = [_parquet(file) for file in files]
    return Source(parts[0].columns, chain.from_iterable(part.rows for part in parts))


def _saved_folder(place: Path, split: Split) -> Path | None:
    """The folder of one dataset that save_to_disk wrote: `place`, or the split's below it."""
    candidates = [place, *(place / name for name in SPLIT_NAMES[split])]
    return next((folder for folder in candidates if (folder / "state.json").is_file()), None)


def _parquet_files(place: Path, split: Split) -> list[Path]:
    names = SPLIT_NAMES[split]
    return sorted(file for file in place.rglob("*.parquet") if file.name.startswith(names) or file.parent.name in names)


def streamed(dataset: Any, place: str) -> Source:
    """The rows of what the `datasets` library holds; `place`: where, for messages."""
    batches = (table.to_pylist() for table in dataset.with_format("arrow").iter(_BATCH_ROWS))
    return Source(frozenset(dataset.column_names), _placed(place, batches))


def _saved(place: Path) -> Any:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise _missing("datasets", place) from error
    try:
        return load_from_disk(str(place))
    except Exception as error:  # a damaged folder makes the library raise nearly anything
        raise DataError(f"{place} cannot be read as a saved dataset ({type(error).__name__}: {error}). Copy it again.")\
            from error  # fmt: skip


def _arrow_file(file: Path) -> Any:
    try:
        from datasets import Dataset
    except ImportError as error:
        raise _missing("datasets", file) from error
    try:
        return Dataset.from_file(str(file))
    except Exception as error:  # see _saved
        raise DataError(f"{file} cannot be read as Arrow ({type(error).__name__}: {error}). Copy it again.") from error


def _parquet(file: Path) -> Source:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise _missing("pyarrow", file) from error
    try:
        table = parquet.ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet ({error}). Copy it again.") from error
    batches = (batch.to_pylist() for batch in table.iter_batches(_BATCH_ROWS))
    return Source(frozenset(table.schema_arrow.names), _placed(str(file), batches))


def _placed(path: str, batches: Iterable[list[Any]]) -> Rows:
    for number, row in enumerate(chain.from_iterable(batches), 1):
        yield f"{path}, row {number}", row


def _json(file: Path) -> Source:
    """A JSON list, or one object a line; the first object says which columns there are."""
    with file.open("rb") as content:
        is_list = content.read(64).decode("utf-8-sig", errors="replace").lstrip().startswith("[")
    rows = json_list(str(file), "row") if is_list else _sound(json_lines(str(file)))
    first = next(rows, None)
    if first is None:
        raise DataError(f"{file} holds no row. {_FORMS}. Write it again, or name another.")
    columns = frozenset(first[1]) if isinstance(first[1], dict) else frozenset()
    return Source(columns, chain([first], rows))


def json_lines(path: str) -> Rows:
    """One value a line with its place, or what is wrong with the line; blank lines mean nothing."""
    for number, content in numbered_lines(path):
        if not content.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(content)
        except (ValueError, RecursionError) as error:
            what = f"{where}: not JSON ({error}): {shown(content)}. A line is one object. Correct the line."
            yield where, DataError(what)


def _sound(rows: Rows) -> Rows:
    for where, row in rows:
        if isinstance(row, DataError):
            raise row
        yield where, row


def _missing(package: str, place: Path) -> DataError:
    return DataError(
        f"{place} needs the package `{package}`, which is not installed. Datasets in Arrow or Parquet are read with "
        "it. Install it with `pip install -e '.[datasets]'`, or export the dataset as JSON lines."
    )
