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

import torch
from torch import Tensor

from distill_engine.teachers.columns import CacheError, Column, Form, from_json, names_of, unpacked
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
    ) -> None:
        """`dtype`: of the models that compute; `attention` as columns.attention_facts."""
        self._shards, self._form, self._columns, self._attention = shards, form, columns, attention
        self._device, self._dtype = device, dtype
        self.identity = identity

    def lacking(self, request: FeatureRequest) -> list[str]:
        """Columns that are not there, and the logits' factors, of which there are none."""
        missing = [name for name in names_of(request, self._form) if name not in self._columns]
        return [*(["head"] if request.head else []), *missing]

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
                raise CacheError(
                    f"Example {int(batch.example_ids[row])} of dataset {int(batch.dataset_ids[row])} is not in the "
                    "teacher's cache: its text is not that of the dataset. A cached teacher needs rollout.source: gold."
                )
        sizes = {Stack.ENCODER.value: batch.inputs.length, Stack.DECODER.value: batch.labels.shape[1]}
        tables = {
            name: self._moved(self._shards.rows(places, name, sizes[self._columns[name].stack]))
            for name in names_of(request, self._form)
        }
        return unpacked(tables, self._form, self._attention, request)

    def _moved(self, rows: Tensor) -> Tensor:
        """To the device; all but token numbers in the type that the models compute in."""
        moved = rows.to(self._device, non_blocking=True)
        return moved if rows.dtype == torch.int32 else moved.to(self._dtype)


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
        return CachedTeacher(shards, form, columns, attention, parts.device, parts.dtype, identity)


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
            f"{folder} was made by another teacher: its configuration and weights have digest {manifest['teacher']}, "
            f"those of teacher.path {wanted.teacher}. {other}"
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
