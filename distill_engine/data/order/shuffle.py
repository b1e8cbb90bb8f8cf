"""Keyed shuffles of 0..size-1, element by element: pure functions of (key, index), in memory that does not grow.

Up to `TABLE_SIZE` elements a shuffle is the order of keyed hashes, kept as a table. Above that it is a Feistel network
over the smallest power of four that is not below size, walked on while it points outside (M. Luby and C. Rackoff 1988;
J. Black and P. Rogaway 2002): every element costs a few hashes and no memory, whatever the size.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

TABLE_SIZE = 2**20
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6


def key_of(*words: int | str) -> np.uint64:
    """A 64-bit key for some words; equal words give the same key everywhere."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def stream(key: np.uint64, counters: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Element `counter` of the SplitMix64 stream that starts at `key`, for each counter.

    Own arithmetic rather than NumPy's generators, whose streams may change from version to version.
    """
    mixed = counters.astype(np.uint64) * _GOLDEN + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def shuffled(indices: NDArray[np.int64], size: int, key: np.uint64) -> NDArray[np.int64]:
    """Where the shuffle `key` of 0..size-1 has each of `indices` (0 <= index < size)."""
    if size <= TABLE_SIZE:
        return _table(size, int(key))[indices]
    return walked(indices, size, key)


@lru_cache(maxsize=16)  # at most 128 MiB: enough for the passes that several datasets are in at one time
def _table(size: int, key: int) -> NDArray[np.int64]:
    return np.argsort(stream(np.uint64(key), np.arange(size, dtype=np.int64)), kind="stable")


def walked(indices: NDArray[np.int64], size: int, key: np.uint64) -> NDArray[np.int64]:
    """The same as `shuffled`, of another shuffle, without a table."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = stream(key, np.arange(_ROUNDS, dtype=np.int64))
    places = _feistel(indices.astype(np.uint64), half, keys)
    while (outside := places >= np.uint64(size)).any():  # a permutation's walk always comes back inside
        places[outside] = _feistel(places[outside], half, keys)
    return places.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of 0..4**half-1."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (stream(key, right) & mask)
    return (left << half) | right
