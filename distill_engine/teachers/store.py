"""The files of a teacher cache.

    DIR/manifest.json                  what was cached, of which teacher, in which form (columns.py)
    DIR/constants/*.npy                what is the same for all examples, if there is any of that
    DIR/<dataset>/dataset.json         title and number of examples; there when all of its shards are
    DIR/<dataset>/<shard>/*.npy        keys [n, 2], lengths [n, 2], and a table [positions, width] for each column

<dataset> is the digest of the examples' token ids, so data that is there already is never computed twice, and more data
comes beside it. A shard is complete or absent (assembly/cache_files.py). Examples are found by their own token ids, in
whatever order, mixture or number of ranks a run asks for them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_engine.teachers.columns import DTYPES, CacheError, Column
from distill_engine.values import IGNORED_LABEL, Batch, Stack, Tokens

FORMAT = 2
MANIFEST, DATASET, CONSTANTS = "manifest.json", "dataset.json", "constants"
_NUMPY: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "int32": np.int32}


# ---- examples --------------------------------------------------------------------------------------------------------


def lengths_of(batch: Batch) -> NDArray[np.int64]:
    """[B, 2]: context positions, and decoder positions up to the last label, of each row of a batch on the host."""
    predicted = (batch.labels != IGNORED_LABEL).numpy()
    last = predicted.shape[1] - np.argmax(predicted[:, ::-1], axis=1)
    contexts = batch.context_mask.sum(dim=1).numpy()
    return np.stack([contexts, np.where(predicted.any(axis=1), last, 0)], axis=1)


def keys_of(batch: Batch, lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """[B, 2]: names of all that decides the teacher's features of each row, the ids that it reads, and of the context
    alone."""
    assert isinstance(batch.inputs, Tokens), "caches are made of text"
    contexts = batch.inputs.input_ids.numpy().astype(np.int32)
    decoders = batch.decoder_input_ids.numpy().astype(np.int32)
    keys = np.empty((len(lengths), 2), np.uint64)
    for row, (context, label) in enumerate(lengths):
        digest = hashlib.blake2b(contexts[row, :context].tobytes(), digest_size=8)
        keys[row, 1] = np.frombuffer(digest.digest(), np.uint64)[0]
        digest.update(int(context).to_bytes(8, "little"))
        digest.update(decoders[row, :label].tobytes())
        keys[row, 0] = np.frombuffer(digest.digest(), np.uint64)[0]
    return keys


# ---- tables ---------------------------------------------------------------------------------------------------------


def require_storable(name: str, rows: Tensor, dtype: str, precision: str) -> None:
    """`rows` [positions, width]: those of a column that are kept, as a teacher that computes in `precision` gave them.
    Raises CacheError where its type does not hold them, or nothing is to be learnt from them."""
    peak = float(rows.abs().max()) if rows.numel() else 0.0  # NaN where any is
    if not math.isfinite(peak):
        fix = "Its weights are damaged, or it has diverged: use another copy of it."
        if precision == "fp16":
            fix = "Its layers may overflow there: use --precision bf16 or fp32."
        raise CacheError(f"The teacher's {name}, computed in {precision}, has values that are not finite. {fix}")
    if dtype == "fp16" and peak > torch.finfo(torch.float16).max:
        raise CacheError(f"The teacher's {name} has values beyond the range of fp16. Keep them in bf16 (--dtype bf16).")


def to_numpy(rows: Tensor, dtype: str) -> NDArray[Any]:
    """Rows as files hold them; bf16, which numpy does not know, as its bits."""
    if dtype == "int32":
        return rows.int().cpu().numpy()
    stored = rows.detach().to(DTYPES[dtype]).cpu().contiguous()
    return stored.view(torch.int16).numpy().view(np.uint16) if dtype == "bf16" else stored.numpy()


def to_tensor(rows: NDArray[Any], dtype: str) -> Tensor:
    """The inverse of `to_numpy`."""
    if dtype == "bf16":
        return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(rows)


def empty_table(column: Column, positions: int) -> NDArray[Any]:
    """[positions, width], to be filled."""
    return np.empty((positions, column.width), _NUMPY[column.dtype])


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file. Raises CacheError if it is something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CacheError(f"{file} cannot be read: {error}. Make the cache again in another folder.") from error
    if not isinstance(content, dict):
        raise CacheError(f"{file} holds no JSON object. Make the cache again in another folder.")
    return content


def difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One line for each key that is not equal: `key: value there, wanted value`."""
    keys = [*wanted, *(key for key in there if key not in wanted)]
    return [
        f"{key}: there {json.dumps(there.get(key))}, wanted {json.dumps(wanted.get(key))}"
        for key in keys
        if there.get(key) != wanted.get(key)
    ]


# ---- reading ---------------------------------------------------------------------------------------------------------


class Shards:
    """The examples of some datasets of a cache, found by key; tables are memory-mapped when first asked for."""

    def __init__(self, folder: Path, datasets: Sequence[str], columns: Mapping[str, Column]) -> None:
        """Reads keys and lengths. Raises CacheError where files are missing or damaged."""
        self.folder, self._columns = folder, columns
        parts = [path for one in datasets for path in sorted((folder / one).iterdir()) if path.is_dir()]
        self._parts = [path for path in parts if not path.name.startswith(".")]
        self._tables: dict[tuple[int, str], NDArray[Any]] = {}
        keys, places = [np.empty((0, 2), np.uint64)], [np.empty((0, 2), np.int64)]
        self._begins: list[NDArray[np.int64]] = []  # [n + 1, 2]: first position of each example in either stack
        for number, part in enumerate(self._parts):
            own = _read(part / "keys.npy", _loaded)
            lengths = _read(part / "lengths.npy", _loaded)
            self._begins.append(np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(lengths, axis=0)]))
            keys.append(own)
            places.append(np.stack([np.full(len(own), number), np.arange(len(own))], axis=1))
        every = np.concatenate(keys)
        there = sum(int((read_json(folder / one / DATASET) or {}).get("examples", 0)) for one in datasets)
        if there != len(every):
            raise CacheError(
                f"{folder} lacks shards: {len(every)} of {there} examples are there. Remove {DATASET} in "
                f"{' and '.join(datasets)}, and give `distill cache` the same command again."
            )
        order = np.argsort(every[:, 0], kind="stable")
        self._keys, self._places = every[order], np.concatenate(places)[order]
        self._first = np.ascontiguousarray(self._keys[:, 0])

    def find(self, key: NDArray[np.uint64]) -> tuple[int, int] | None:
        """Shard and row of an example; None where it is not there."""
        place = int(np.searchsorted(self._first, key[0]))
        while place < len(self._first) and self._first[place] == key[0]:
            if self._keys[place, 1] == key[1]:
                return int(self._places[place, 0]), int(self._places[place, 1])
            place += 1
        return None

    def has_context(self, key: NDArray[np.uint64]) -> bool:
        """Whether some example has this one's context. Looks at all."""
        return bool((self._keys[:, 1] == key[1]).any())

    def constants(self, shapes: Mapping[str, Sequence[int]], dtype: str) -> dict[str, Tensor]:
        """What is the same for all examples, of these shapes."""
        found = {name: _read(self.folder / CONSTANTS / f"{name}.npy", _loaded) for name in shapes}
        if wrong := [name for name, one in found.items() if list(one.shape) != list(shapes[name])]:
            raise CacheError(f"{self.folder / CONSTANTS} has another {wrong[0]} than {MANIFEST} says. {_AGAIN}")
        return {name: to_tensor(one, dtype) for name, one in found.items()}

    def rows(self, places: Sequence[tuple[int, int] | None], name: str, length: int) -> Tensor:
        """[B, length, width] of one column: each example's positions, then zeros; None: zeros alone."""
        column = self._columns[name]
        side = 0 if column.stack == Stack.ENCODER.value else 1
        out = np.empty((len(places), length, column.width), _NUMPY[column.dtype])
        for row, place in enumerate(places):
            first = end = 0
            if place is not None:
                first, end = self._begins[place[0]][place[1] : place[1] + 2, side]
                out[row, : end - first] = self._table(place[0], column)[first:end]
            out[row, end - first :] = 0
        return to_tensor(out, column.dtype)

    def _table(self, part: int, column: Column) -> NDArray[Any]:
        found = self._tables.get((part, column.name))
        if found is None:
            found = self._tables[part, column.name] = _read(self._parts[part] / f"{column.name}.npy", _mapped)
            if found.shape[1] != column.width or found.dtype != _NUMPY[column.dtype]:
                raise CacheError(f"{self._parts[part]} has another {column.name} than {MANIFEST} says. {_AGAIN}")
        return found


def _read(file: Path, read: Callable[[Path], NDArray[Any]]) -> NDArray[Any]:
    try:
        return read(file)
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        raise CacheError(f"{file} cannot be read: {error}. {_AGAIN}") from error


def _loaded(file: Path) -> NDArray[Any]:
    found: NDArray[Any] = np.load(file, allow_pickle=False)
    return found


def _mapped(file: Path) -> NDArray[Any]:
    """In memory as far as it is looked at. Numpy's own mapping keeps the file open, and a large cache has more files
    than a process may have open."""
    with file.open("rb") as opened:
        np.lib.format.read_magic(opened)
        shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
        first, size = opened.tell(), os.fstat(opened.fileno()).st_size
    if dtype.hasobject or size - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{size - first} bytes are no {list(shape)} of {dtype}")
    content = torch.from_file(str(file), size=size, dtype=torch.uint8).numpy()
    return content[first:].view(dtype).reshape(shape)


_AGAIN = (
    "Remove its folder, of a shard the dataset.json beside it as well, and give `distill cache` the same command again."
)
