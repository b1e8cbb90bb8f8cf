"""Runs a live teacher once over all examples of a recipe and leaves its outputs in a folder (`distill cache`).

What is computed is decided by the recipe's loss weights and layer maps, as it would be for training. Every rank holds
the whole teacher and makes its share of the shards, without a word to the others. Shards that are there are not
computed again: a killed command goes on, and further datasets come beside the earlier ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill_engine.assembly.builder import supervision_of
from distill_engine.assembly.cache_files import (
    manifest_differences,
    one_of_the_writers,
    unfinished_bytes,
    write_arrays,
    write_json,
)
from distill_engine.assembly.frozen_teacher import teacher_alone
from distill_engine.assembly.made_of import datasets, made_of
from distill_engine.checkpoint.files import existing, free_bytes, readable_bytes
from distill_engine.cluster.other_ranks import OtherRanks
from distill_engine.cluster.ranks import Alone
from distill_engine.data.order.collate import Picks
from distill_engine.data.order.loader import picked_batch
from distill_engine.data.tokens.tokenised import TokenisedDataset
from distill_engine.evaluate.compare import own_device
from distill_engine.losses.objective import Objective
from distill_engine.recipe.cache_rules import against_some_tokens
from distill_engine.recipe.schema import Recipe
from distill_engine.setup.prepare import Prepared, prepare
from distill_engine.teachers.columns import CacheError, Column, Form, as_json, attention_facts, constants, packed
from distill_engine.teachers.protocol import Engine, MadeOf
from distill_engine.teachers.store import (
    CONSTANTS,
    DATASET,
    FORMAT,
    MANIFEST,
    empty_table,
    keys_of,
    lengths_of,
    read_json,
    require_storable,
    to_numpy,
)
from distill_engine.values import Batch, FeatureRequest, Stack

SHARD_BYTES = 256 * 2**20
_KEY_BYTES = 32  # of each example: key and lengths
_POLL_SECONDS = 0.2
_SPARE = 1.02  # file headers, file system


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


@dataclass(frozen=True)
class Share:
    """Which shards this process makes. The same of the same shards in every start, so ranks need not talk."""

    rank: int = 0
    world_size: int = 1

    def holder(self, shard: int) -> int:
        """The rank for this shard of all datasets together."""
        return shard % self.world_size


ALONE = Share()


@dataclass(frozen=True, eq=False)
class _Dataset:
    """One dataset of a recipe: its title, its folder's name, its examples, and the bounds of its shards, the first of
    which has this number among those of all datasets."""

    title: str
    key: str
    examples: TokenisedDataset
    first_shard: int
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
        share: Share = ALONE,
    ) -> None:
        """Asks the teacher for one example, to know what there is to keep. Raises CacheError."""
        self._ready, self._teacher = ready, teacher
        self._form = self._form_of(settings, request)
        self._request = replace(request, logits=False, head=True) if self._form.head else request
        self._folder, self._settings, self._device, self._share = folder, settings, device, share
        self._columns, attention, self._constants = self._asked()
        self._datasets: list[_Dataset] = []
        for title, dataset in datasets(ready).items():
            self._datasets.append(self._dataset(title, known_by.datasets[title], dataset))
        self._manifest = {
            "format": FORMAT,
            "teacher": known_by.teacher,
            "computed_in": settings.precision,
            "shard_bytes": settings.shard_bytes,
            "form": as_json(self._form, self._columns, attention),
            "constants": {name: list(one.shape) for name, one in self._constants.items()},
        }

    def missing(self) -> tuple[int, int, int]:
        """Bytes of the whole cache for this recipe, bytes that are not there yet, and examples of these."""
        once = sum(one.nbytes for one in self._constants.values())
        whole = sum(int(one.sizes.sum()) for one in self._datasets) + once
        todo = [(one, first, end) for one, _, first, end in self._todo()]
        left = sum(int(one.sizes[first:end].sum()) for one, first, end in todo)
        left += 0 if (self._folder / CONSTANTS).is_dir() else once
        return whole, left, sum(end - first for _, first, end in todo)

    def require_fit(self) -> str:
        """A line about the size. Raises CacheError where another cache is there, or the disk is too small; nothing has
        been written then."""
        self._require_same()
        whole, left, examples = self.missing()
        free, needed = free_bytes(existing(self._folder)), int((left - unfinished_bytes(self._folder)) * _SPARE)
        line = f"{self._folder} takes {readable_bytes(whole)}, of which {readable_bytes(left)} are to be written"
        if needed > free:
            raise CacheError(
                f"{line}, and {readable_bytes(free)} are free there. Keep fewer tokens (--k), half precision (--dtype "
                "bf16) or fewer terms (losses.weights of hidden states and attention), or give another disk (--out)."
            )
        shards = sum(len(one.shards) for one in self._datasets)
        idle = self._share.world_size - shards
        note = f"; {idle} ranks have nothing to do, smaller shards (--shard-mib) would help" if idle > 0 else ""
        return f"{line} for {examples:,} examples; {readable_bytes(free)} are free{note}"

    def write(self, advance: Callable[[int], None], entered: OtherRanks | None = None) -> None:
        """This rank's share of the shards that are missing; `advance` hears of so many examples more; `entered`: the
        ranks of this start, where they have been already. Rank 0 returns when all ranks' are there. Raises OSError,
        CacheError, OthersFailedError; the other ranks are told, and what is finished stays."""
        with one_of_the_writers(self._folder, self._share.rank, self._share.world_size, entered) as others:
            if read_json(self._folder / MANIFEST) is None:
                write_json(self._folder / MANIFEST, self._manifest)
            self._require_same()
            if self._share.rank == 0 and self._constants and not (self._folder / CONSTANTS).is_dir():
                write_arrays(self._folder / CONSTANTS, self._constants, 0)
            for one, number, first, end in self._todo():
                if self._share.holder(one.first_shard + number) == self._share.rank:
                    arrays = self._shard(one.examples, first, end, advance)
                    write_arrays(self._folder / one.key / _name(number), arrays, self._share.rank)
            if self._share.rank == 0:
                self._finish(others)

    def _finish(self, others: OtherRanks) -> None:
        """Wait for the shards of the other ranks, and say that datasets are complete."""
        while left := list(self._todo()):
            owing = {self._share.holder(one.first_shard + number) for one, number, _, _ in left}
            others.require(owing, f"{len(left)} shards")
            time.sleep(_POLL_SECONDS)
        for one in self._datasets:
            if read_json(self._folder / one.key / DATASET) is None:
                facts = {"title": one.title, "examples": len(one.examples)}
                write_json(self._folder / one.key / DATASET, facts)

    def _require_same(self) -> None:
        there = read_json(self._folder / MANIFEST)
        if there is not None and there != self._manifest:
            lines = "\n".join(f"  {line}" for line in manifest_differences(there, self._manifest))
            raise CacheError(f"{self._folder} holds another cache:\n{lines}\nGive another folder (--out).")

    def _form_of(self, settings: Settings, request: FeatureRequest) -> Form:
        """Of all logits their factors, where these are fewer numbers; the mean of several teachers has none."""
        assert self._ready.teacher_shape is not None
        shape, layout = self._ready.teacher_shape, self._ready.layout
        k = settings.k if settings.k is not None and settings.k < shape.vocab - 1 else None
        if k is not None and (reason := against_some_tokens(self._ready.recipe, f"--k is {k}")):
            raise CacheError(reason)
        head = k is None and request.logits and shape.width < shape.vocab and not self._ready.others
        return Form(k, settings.dtype, shape.vocab, self._ready.family.masked_id(layout.start_id), head)

    def _asked(self) -> tuple[list[Column], dict[str, list[float]], dict[str, NDArray[Any]]]:
        """Columns, attention facts and constants, from the features of one example padded to the limits."""
        batch = self._batch(self._ready.train_datasets[0], np.array([0]), self._longest())
        shown = self._teacher.features(batch, self._request)
        rows = packed(shown, self._form)
        columns = [Column(name, stack.value, one.shape[-1], dtype) for name, (stack, dtype, one) in rows.items()]
        once = {name: to_numpy(one, self._form.dtype) for name, one in constants(shown).items()}
        return columns, attention_facts(shown), once

    def _longest(self) -> int:
        limits = self._ready.train_datasets[0].limits
        return max(limits.context, limits.label)

    def _dataset(self, title: str, key: str, dataset: TokenisedDataset) -> _Dataset:
        row = {stack: sum(one.row_bytes for one in self._columns if one.stack == stack.value) for stack in Stack}
        labels = dataset.label_lengths + self._ready.layout.label_pad_prefix
        sizes = dataset.context_lengths * row[Stack.ENCODER] + labels * row[Stack.DECODER] + _KEY_BYTES
        numbers = (np.cumsum(sizes) - sizes) // self._settings.shard_bytes
        firsts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(dataset)]
        before = sum(len(one.shards) for one in self._datasets)
        return _Dataset(title, key, dataset, before, list(pairwise(firsts)), sizes)

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
        self, dataset: TokenisedDataset, first: int, end: int, advance: Callable[[int], None]
    ) -> Mapping[str, NDArray[Any]]:
        """The arrays of some examples; the passes are over examples of about one length, the same in every start."""
        contexts, labels = dataset.lengths(np.arange(first, end))
        lengths = np.stack([contexts, labels + self._ready.layout.label_pad_prefix], axis=1)
        begins = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(lengths, axis=0)])
        sides = {one.name: 0 if one.stack == Stack.ENCODER.value else 1 for one in self._columns}
        arrays = {one.name: empty_table(one, int(begins[-1, sides[one.name]])) for one in self._columns}
        arrays |= {"keys": np.empty((end - first, 2), np.uint64), "lengths": lengths}
        order = np.lexsort((np.arange(end - first), -labels, -contexts))
        for part in np.split(order, range(self._settings.per_batch, len(order), self._settings.per_batch)):
            batch = self._batch(dataset, first + part)
            host = batch.to("cpu")
            assert (lengths_of(host) == lengths[part]).all(), "the data tell other lengths than their batches"
            arrays["keys"][part] = keys_of(host, lengths[part])
            for name, (_, dtype, rows) in packed(self._teacher.features(batch, self._request), self._form).items():
                kept = torch.arange(rows.shape[1]) < torch.from_numpy(lengths[part, sides[name], None])
                require_storable(name, rows[kept.to(rows.device)], dtype, self._settings.precision)
                stored = to_numpy(rows, dtype)
                for row, example in enumerate(part):
                    begin, until = begins[example : example + 2, sides[name]]
                    arrays[name][begin:until] = stored[row, : until - begin]
            advance(len(part))
        return arrays

    def _batch(self, dataset: TokenisedDataset, examples: NDArray[np.int64], multiple: int | None = None) -> Batch:
        picks = Picks(np.zeros_like(examples), examples)
        multiple = multiple or self._ready.recipe.batch.pad_to_multiple_of
        return picked_batch([dataset], picks, self._ready.layout, multiple).to(self._device)


def _name(number: int) -> str:
    return f"{number:05d}"


def cache_maker(recipe: Recipe, source: Path, folder: Path, settings: Settings, share: Share = ALONE) -> CacheMaker:
    """Loads data and teacher. Raises ValueError (RecipeError, DataError, CacheError, ...) for what cannot be used."""
    if not recipe.losses.weights.needs_teacher:
        raise CacheError(f"{source} compares nothing with a teacher: its distillation weights are all 0.")
    ready = prepare(recipe, source)
    if ready.layout.window is not None:
        raise CacheError(f"{source}: the teacher hears. Caches are of text; teacher.source: live computes its outputs.")
    return cache_maker_of(ready, folder, settings, share)


def cache_maker_of(ready: Prepared, folder: Path, settings: Settings, share: Share = ALONE) -> CacheMaker:
    """The same of what is prepared already."""
    assert ready.teacher_folder is not None
    device = own_device()
    objective = Objective(ready.recipe.losses.weights, supervision_of(ready))
    teacher = teacher_alone(ready, settings.precision, device)
    known_by, request = made_of(ready, Alone()), objective.teacher_request()
    return CacheMaker(ready, known_by, teacher, request, folder, settings, device, share)
