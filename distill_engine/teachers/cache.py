"""A teacher that is not there: its features come from files that `distill cache` wrote (store.py).

Equal to the live ones where they were computed at the same batch shape and kept in the same type; else to rounding,
because matrix products and sums over padded lengths round in another order. Padding holds zeros, which nothing
that counts looks at. With `k` tokens per position, logits are rebuilt as columns.py says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_engine.teachers.columns import AS_KEPT, CacheError, Column, Form, from_json, names_of, unpacked
from distill_engine.teachers.protocol import MadeOf, Teacher, TeacherParts
from distill_engine.teachers.store import DATASET, FORMAT, MANIFEST, Shards, keys_of, lengths_of, read_json
from distill_engine.values import Batch, FeatureRequest, Features, Stack


class CachedTeacher(Teacher):
    """Reads each micro-batch's features; every rank for itself, at any number of ranks."""

    def __init__(
        self,
        shards: Shards,
        form: Form,
        columns: Mapping[str, Column],
        attention: Mapping[str, list[float]],
        device: torch.device,
        dtype: torch.dtype,
        identity: Mapping[str, Any],
        once: Mapping[str, Tensor],
    ) -> None:
        """`dtype`: of the models that compute; `attention` as columns.attention_facts, `once` as columns.constants."""
        self._shards, self._form, self._columns, self._attention = shards, form, columns, attention
        self._device, self._dtype = device, dtype
        self.identity = identity
        self._once = {name: self._moved(one, name) for name, one in once.items()}

    def lacking(self, request: FeatureRequest) -> list[str]:
        """Columns that are not there, and the logits' factors where some of the logits were kept instead."""
        missing = [name for name in names_of(request, self._form) if name not in self._columns]
        return [*(["head"] if request.head and not self._form.head else []), *missing]

    def features(self, group: Sequence[Batch], request: FeatureRequest) -> Iterator[Features]:
        """As the protocol says. Raises CacheError for an example that is not in the cache."""
        for batch in group:
            yield self._of(batch.to("cpu"), request)

    def _of(self, batch: Batch, request: FeatureRequest) -> Features:
        lengths = lengths_of(batch)
        keys = keys_of(batch, lengths)
        places = [self._shards.find(key) if label else None for key, (_, label) in zip(keys, lengths, strict=True)]
        for row, place in enumerate(places):
            if place is None and lengths[row, 1]:
                raise CacheError(self._foreign(batch, row, lengths[row].tolist(), keys[row]))
        sizes = {Stack.ENCODER.value: batch.inputs.length, Stack.DECODER.value: batch.labels.shape[1]}
        tables = {
            name: self._moved(self._shards.rows(places, name, sizes[self._columns[name].stack]), name)
            for name in names_of(request, self._form)
        }
        return unpacked(tables, self._form, self._attention, request, self._once)

    def _foreign(self, batch: Batch, row: int, lengths: list[int], key: NDArray[np.uint64]) -> str:
        """What is the matter with an example that is not there."""
        same = self._shards.has_context(key)
        which = "its context is there with other labels" if same else "no example there has its context"
        return (
            f"Example {int(batch.example_ids[row])} of dataset {int(batch.dataset_ids[row])} ({lengths[0]} context and "
            f"{lengths[1]} label tokens) is not in the teacher's cache {self._shards.folder}: {which}. The datasets "
            "were all there at the start, so its text is not theirs, or files of the cache were replaced. Use "
            "rollout.source: gold; or make the cache again in another folder with `distill cache RECIPE --out DIR`."
        )

    def _moved(self, rows: Tensor, name: str) -> Tensor:
        """To the device; features in the type that the models compute in. For log-probabilities, which those of several
        teachers are, half precision may be too coarse."""
        moved = rows.to(self._device, non_blocking=True)
        return moved if rows.dtype == torch.int32 or name in AS_KEPT else moved.to(self._dtype)


class Cache:
    """teacher.source: cache."""

    meaning: ClassVar[str] = "files that `distill cache` wrote (teacher.cache); no teacher in memory"

    def open(self, parts: TeacherParts) -> Teacher:
        """Raises CacheError where the folder is not a cache of this teacher and these data."""
        assert parts.cache is not None, "a rule of recipes"
        made_of = parts.made_of()
        manifest = checked(parts.cache, made_of)
        form, columns, attention = from_json(manifest["form"])
        shards = Shards(parts.cache, list(dict.fromkeys(made_of.datasets.values())), columns)
        digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
        identity = {"teacher_cache": digest}
        once = shards.constants(manifest["constants"], form.dtype)
        return CachedTeacher(shards, form, columns, attention, parts.device, parts.dtype, identity, once)


CACHE = Cache()


def checked(folder: Path, wanted: MadeOf) -> dict[str, Any]:
    """The manifest of a cache of this teacher with all of these datasets. Raises CacheError with the difference."""
    manifest = read_json(folder / MANIFEST)
    make = f"Make it with `distill cache RECIPE --out {folder}`."
    if manifest is None:
        raise CacheError(f"{folder} holds no {MANIFEST}: it is no teacher cache. {make}")
    other = "Make a cache of this recipe in another folder with `distill cache RECIPE --out DIR`."
    if manifest.get("format") != FORMAT:
        raise CacheError(f"{folder} has format {manifest.get('format')!r}, this program reads {FORMAT}. {other}")
    if manifest["teacher"] != wanted.teacher:
        raise CacheError(
            f"{folder} was made by another teacher: its configuration and weights (of several also their shares and "
            f"losses.temperature) have digest {manifest['teacher']}, those of this recipe {wanted.teacher}. {other}"
        )
    absent = [title for title, key in wanted.datasets.items() if read_json(folder / key / DATASET) is None]
    if absent:
        files = [read_json(file) or {} for file in sorted(folder.glob(f"*/{DATASET}"))]
        held = "; ".join(str(one.get("title")) for one in files) or "nothing complete"
        raise CacheError(
            f"{folder} does not hold, with these token ids and limits: {'; '.join(absent)}. It holds: {held}. Text, "
            f"tokenizer, data.context_tokens or data.label_tokens are others, or it was not finished. {make}"
        )
    return manifest
