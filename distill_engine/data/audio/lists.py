"""Lists of sounds: manifests whose rows name files, and datasets in Hugging Face's form whose rows hold sounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from distill_engine.cluster.files import replace_bytes
from distill_engine.data.audio.sound import At, Sound, SoundError, ending, file_stamp, read_sound
from distill_engine.data.episodes import Split
from distill_engine.data.formats.hf_datasets import held_dataset, opened, split_files
from distill_engine.data.formats.tables import Table, hub_dataset, hub_files, open_table

MANIFESTS = (".jsonl", ".csv", ".tsv")
_BATCH_ROWS = 64  # sounds in rows are large


@dataclass(frozen=True)
class Manifest:
    """A JSONL, CSV or TSV file; relative paths in it start at its folder."""

    path: str
    split: Split

    @property
    def identity(self) -> str:
        """See Sounds."""
        return str(Path(self.path).expanduser().resolve().parent)

    def table(self) -> Table:
        """Columns and rows. Raises DataError."""
        return open_table(self.path, self.split)

    def count(self) -> int:
        """How many rows it has, wrong ones too. Raises DataError."""
        return sum(1 for _ in self.table().rows)

    @property
    def files(self) -> list[Path]:
        """What it is read from."""
        return [Path(self.path).expanduser()]

    def at(self, value: object, number: int) -> At:
        """Where a row's sound is, by the value in its column. Raises SoundError."""
        del number
        if not isinstance(value, str) or not value.strip():
            raise SoundError(f"no path of a sound file but {value!r:.80}")
        return value

    def place_of(self, at: At) -> Path | bytes:
        """What is decoded, by where it is."""
        return self.source(at)

    def source(self, value: object) -> Path:
        """What is decoded, by the same value."""
        return Path(self.path).expanduser().parent / Path(str(value)).expanduser()

    def read(self, at: At) -> Sound:
        """See Sounds."""
        return read_sound(self.source(at))

    def stamp(self, at: At) -> object:
        """See Sounds."""
        return file_stamp(self.source(at))


@dataclass(frozen=True)
class Rows:
    """A folder or file in Hugging Face's form, or a dataset by name; a row holds a sound's bytes or its path.

    column  of the sound
    """

    path: str | None
    dataset: str | None
    config: str | None
    revision: str | None
    column: str
    split: Split

    @cached_property
    def _held(self) -> Any:
        if self.dataset is not None:
            return hub_dataset(self.dataset, self.config, self.revision, self.split)
        return held_dataset(str(self.path), self.split)

    @property
    def identity(self) -> str:
        """See Sounds."""
        place = self._title if self.path is None else str(Path(self.path).expanduser().resolve())
        return f"{place} {self.config} {self.revision} {self.column} {self._held._fingerprint}"

    @property
    def _title(self) -> str:
        return self.dataset or str(self.path)

    def table(self) -> Table:
        """Columns and rows, sounds as they are kept. Raises DataError."""
        batches = (table.to_pylist() for table in self._held.with_format("arrow").iter(_BATCH_ROWS))
        rows = ((f"{self._title}, row {number}", row) for number, row in enumerate(chain.from_iterable(batches), 1))
        return Table(self._title, frozenset(self._held.column_names), rows)

    def count(self) -> int:
        """See Manifest."""
        return len(self._held)

    @property
    def files(self) -> list[Path]:
        """What it is read from."""
        if self.dataset is not None:
            return hub_files(self.dataset, self.config, self.revision, self.split)
        opened(str(self.path), self.split)
        return split_files(str(self.path), self.split)

    def at(self, value: object, number: int) -> At:
        """See Manifest; the number of a row that holds the sound itself."""
        if isinstance(self.source(value), bytes):
            return number
        return str(value["path"] if isinstance(value, Mapping) else value)

    def read(self, at: At) -> Sound:
        """See Sounds."""
        return read_sound(self.place_of(at))

    def place_of(self, at: At) -> Path | bytes:
        """See Manifest."""
        return self.source(at if isinstance(at, str) else self._value(at))

    def stamp(self, at: At) -> object:
        """See Sounds: bytes are part of the dataset, which `identity` knows."""
        return file_stamp(Path(str(self.source(at)))) if isinstance(at, str) else None

    @cached_property
    def _column(self) -> Any:
        return self._held.select_columns([self.column]).with_format("arrow")

    def _value(self, number: int) -> object:
        return self._column[number - 1].to_pylist()[0][self.column]

    def source(self, value: object) -> Path | bytes:
        """See Manifest: the value is a path, bytes, or an object with either."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if isinstance(value, str) and value.strip():
            beside = Path(self.path).expanduser() if self.path is not None else Path()
            return (beside if beside.is_dir() else beside.parent) / Path(value).expanduser()
        raise SoundError("the row holds neither the bytes nor the path of a sound")


Listed = Manifest | Rows
SOUND_FILES = f"{'[0-9]' * 8}.*"  # names that `sound_file` gives


def sound_file(listed: Listed, at: At, folder: Path) -> Path:
    """The file of a sound; of one that its row holds a copy in `folder`, byte for byte, named after the row: complete
    or absent, made where it is not there. Raises SoundError, OSError."""
    place = listed.place_of(at)
    if isinstance(place, Path):
        return place.resolve()
    file = folder / f"{at:08}.{ending(place)}"
    if not (file.is_file() and file.read_bytes() == place):
        folder.mkdir(parents=True, exist_ok=True)
        replace_bytes(file, place, sync=True)
    return file


def placed_rows(listed: Listed) -> Iterator[tuple[int, str, object]]:
    """Number from 1, place and content of each row."""
    for number, (where, row) in enumerate(listed.table().rows, 1):
        yield number, where, row
