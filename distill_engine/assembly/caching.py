"""Runs a live teacher once over all examples of a recipe and leaves its outputs in a folder (`distill cache`).

What is computed is decided by the recipe's loss weights and layer maps, as it would be for training. One process; the
teacher is whole in its device's memory. Shards that are there are not computed again: a killed command goes on, and
further datasets come beside the earlier ones.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from distill_engine.assembly.builder import supervision_of
from distill_engine.assembly.made_of import datasets, made_of
from distill_engine.checkpoint.files import free_bytes, readable_bytes
from distill_engine.data.order.collate import Picks
from distill_engine.data.order.loader import picked_batch
from distill_engine.data.tokens.tokenised import TokenisedDataset
from distill_engine.evaluate.measure import load_model
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.recipe.schema import Recipe
from distill_engine.setup.prepare import Prepared, prepare
from distill_engine.teachers.columns import DTYPES, CacheError, Column, Form, as_json, attention_facts, packed
from distill_engine.teachers.protocol import Engine, MadeOf
from distill_engine.teachers.store import (
    DATASET,
    FORMAT,
    MANIFEST,
    difference,
    empty_table,
    keys_of,
    lengths_of,
    read_json,
    to_numpy,
    write_json,
    write_shard,
)
from distill_engine.values import Batch, FeatureRequest, Features, Stack

SHARD_BYTES = 256 * 2**20
_KEY_BYTES = 32  # of each example: key and lengths
_SPARE = 1.02  # file headers, file system


class Frozen:
    """A teacher whole in the memory of one device, outside of any process group."""

    def __init__(self, folder: Path, precision: str, device: torch.device) -> None:
        """Raises ModelError (a ValueError) if it cannot be loaded."""
        self.model = load_model(folder, device, DTYPES[precision])
        self._shows = adapt(self.model).eval()

    @torch.no_grad()
    def features(self, batch: Batch, request: FeatureRequest) -> Features:
        """One forward pass."""
        shown: Features = self._shows(batch, request)
        return shown


class Alone:
    """The process group of one process without one."""

    rank = 0

    def broadcast(self, value: Any) -> Any:
        """It itself."""
        return value


@dataclass(frozen=True)
class Settings:
    """What the command line decides.

    k            tokens of which log-probabilities are kept; None: all logits
    dtype        of what is kept: fp32, fp16, bf16
    precision    that the teacher computes in
    per_batch    examples of one forward pass
    shard_bytes  about so large a shard becomes; it is held in memory until it is written
    """

    k: int | None
    dtype: str
    precision: str
    per_batch: int
    shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True, eq=False)
class _Dataset:
    """One dataset of a recipe: its title, its folder's name, its examples, and the bounds of its shards."""

    title: str
    key: str
    task: TokenisedDataset
    shards: list[tuple[int, int]]
    sizes: NDArray[np.int64]  # [examples], bytes


class CacheMaker:
    """Makes one cache, or what is missing of it."""

    def __init__(
        self,
        ready: Prepared,
        known_by: MadeOf,
        teacher: Engine,
        request: FeatureRequest,
        folder: Path,
        settings: Settings,
        device: torch.device,
    ) -> None:
        """Asks the teacher for one example, to know what there is to keep. Raises CacheError."""
        self._ready, self._teacher, self._request = ready, teacher, request
        self._folder, self._settings, self._device = folder, settings, device
        self._form, self._columns, attention = self._asked()
        self._datasets = [
            self._dataset(title, known_by.datasets[title], task) for title, task in datasets(ready).items()
        ]
        self._manifest = {
            "format": FORMAT,
            "teacher": known_by.teacher,
            "computed_in": settings.precision,
            "shard_bytes": settings.shard_bytes,
            "form": as_json(self._form, self._columns, attention),
        }

    def missing(self) -> tuple[int, int, int]:
        """Bytes of the whole cache for this recipe, bytes that are not there yet, and examples of these."""
        whole = sum(int(one.sizes.sum()) for one in self._datasets)
        todo = [(one, first, end) for one, _, first, end in self._todo()]
        left = sum(int(one.sizes[first:end].sum()) for one, first, end in todo)
        return whole, left, sum(end - first for _, first, end in todo)

    def require_fit(self) -> str:
        """A line about the size. Raises CacheError where another cache is there, or the disk is too small; nothing has
        been written then."""
        there = read_json(self._folder / MANIFEST)
        if there is not None and there != self._manifest:
            lines = "\n".join(f"  {line}" for line in _differences(there, self._manifest))
            raise CacheError(f"{self._folder} holds another cache:\n{lines}\nGive another folder (--out).")
        whole, left, examples = self.missing()
        place = next(path for path in (self._folder, *self._folder.absolute().parents) if path.exists())
        free, needed = free_bytes(place), int(left * _SPARE)
        line = f"{self._folder} takes {readable_bytes(whole)}, of which {readable_bytes(left)} are to be written"
        if needed > free:
            raise CacheError(
                f"{line}, and {readable_bytes(free)} are free there. Keep fewer tokens (--k), half precision (--dtype "
                "bf16) or fewer terms (losses.weights of hidden states and attention), or give another disk (--out)."
            )
        return f"{line} for {examples:,} examples; {readable_bytes(free)} are free"

    def write(self, advance: Callable[[int], None]) -> None:
        """All shards that are missing; `advance` hears of so many examples more. Raises OSError, CacheError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with _alone(self._folder):
            write_json(self._folder / MANIFEST, self._manifest)
            for one, number, first, end in self._todo():
                write_shard(self._folder / one.key / _name(number), self._shard(one.task, first, end, advance))
            for one in self._datasets:
                facts = {"title": one.title, "examples": len(one.task)}
                if read_json(self._folder / one.key / DATASET) is None:
                    write_json(self._folder / one.key / DATASET, facts)

    def _asked(self) -> tuple[Form, list[Column], dict[str, list[float]]]:
        """Form, columns and attention facts, from the features of one example."""
        assert self._ready.teacher_shape is not None
        shape, layout, settings = self._ready.teacher_shape, self._ready.layout, self._settings
        k = settings.k if settings.k is not None and settings.k < shape.vocab - 1 else None
        form = Form(k, settings.dtype, shape.vocab, self._ready.family.masked_id(layout.start_id))
        shown = self._teacher.features(self._batch(self._ready.train_datasets[0], np.array([0])), self._request)
        rows = packed(shown, form)
        columns = [Column(name, stack.value, one.shape[-1], dtype) for name, (stack, dtype, one) in rows.items()]
        return form, columns, attention_facts(shown)

    def _dataset(self, title: str, key: str, task: TokenisedDataset) -> _Dataset:
        row = {stack: sum(one.row_bytes for one in self._columns if one.stack == stack.value) for stack in Stack}
        labels = task.label_lengths + self._ready.layout.label_pad_prefix
        sizes = task.context_lengths * row[Stack.ENCODER] + labels * row[Stack.DECODER] + _KEY_BYTES
        numbers = (np.cumsum(sizes) - sizes) // self._settings.shard_bytes
        firsts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(task)]
        return _Dataset(title, key, task, list(pairwise(firsts)), sizes)

    def _todo(self) -> Iterator[tuple[_Dataset, int, int, int]]:
        """Dataset, number and bounds of each shard that is not there; datasets of equal examples come once."""
        seen: set[str] = set()
        for one in self._datasets:
            whole = one.key in seen or read_json(self._folder / one.key / DATASET) is not None
            seen.add(one.key)
            for number, (first, end) in enumerate([] if whole else one.shards):
                if not (self._folder / one.key / _name(number)).is_dir():
                    yield one, number, first, end

    def _shard(
        self, task: TokenisedDataset, first: int, end: int, advance: Callable[[int], None]
    ) -> Mapping[str, NDArray[Any]]:
        """The arrays of some examples; the passes are over examples of about one length, the same in every start."""
        contexts, labels = task.lengths(np.arange(first, end))
        lengths = np.stack([contexts, labels + self._ready.layout.label_pad_prefix], axis=1)
        begins = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(lengths, axis=0)])
        sides = {one.name: 0 if one.stack == Stack.ENCODER.value else 1 for one in self._columns}
        arrays = {one.name: empty_table(one, int(begins[-1, sides[one.name]])) for one in self._columns}
        arrays |= {"keys": np.empty((end - first, 2), np.uint64), "lengths": lengths}
        order = np.lexsort((np.arange(end - first), -labels, -contexts))
        for part in np.split(order, range(self._settings.per_batch, len(order), self._settings.per_batch)):
            batch = self._batch(task, first + part)
            host = batch.to("cpu")
            assert (lengths_of(host) == lengths[part]).all(), "the data tell other lengths than their batches"
            arrays["keys"][part] = keys_of(host, lengths[part])
            for name, (_, dtype, rows) in packed(self._teacher.features(batch, self._request), self._form).items():
                _require_finite(name, rows, dtype)
                stored = to_numpy(rows, dtype)
                for row, example in enumerate(part):
                    begin, until = begins[example : example + 2, sides[name]]
                    arrays[name][begin:until] = stored[row, : until - begin]
            advance(len(part))
        return arrays

    def _batch(self, task: TokenisedDataset, examples: NDArray[np.int64]) -> Batch:
        picks = Picks(np.zeros_like(examples), examples)
        multiple = self._ready.recipe.batch.pad_to_multiple_of
        return picked_batch([task], picks, self._ready.layout, multiple).to(self._device)


def _require_finite(name: str, rows: Any, dtype: str) -> None:
    if dtype == "fp16" and float(rows.abs().max()) > 65504:
        raise CacheError(f"The teacher's {name} has values beyond the range of fp16. Keep them in bf16 (--dtype bf16).")


def _name(number: int) -> str:
    return f"{number:05d}"


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """As `difference`, with the form's own keys, and columns by name."""

    def flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
        form = dict(manifest.get("form", {}))
        columns = {f"column {one['name']}": [one["width"], one["dtype"]] for one in form.pop("columns", [])}
        return {**{key: value for key, value in manifest.items() if key != "form"}, **form, **columns}

    return difference(flat(there), flat(wanted))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time, where the file system has locks."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CacheError(f"Another process is writing to {folder}. Wait for it, or end it.") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    try:
        yield
    finally:
        lock.release()


def cache_maker(recipe: Recipe, source: Path, folder: Path, settings: Settings) -> CacheMaker:
    """Loads data and teacher. Raises ValueError (RecipeError, DataError, CacheError, ...) for what cannot be used."""
    if not recipe.losses.weights.needs_teacher:
        raise CacheError(f"{source} compares nothing with a teacher: its distillation weights are all 0.")
    ready = prepare(recipe, source)
    assert ready.teacher_folder is not None
    if ready.layout.window is not None:
        raise CacheError(
            f"{source}: the teacher hears. Caches hold outputs for texts; teacher.source: live computes them."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    request = Objective(recipe.losses.weights, supervision_of(recipe, ready.teacher_shape)).teacher_request()
    teacher = Frozen(ready.teacher_folder, settings.precision, device)
    return CacheMaker(ready, made_of(ready, Alone()), teacher, request, folder, settings, device)
