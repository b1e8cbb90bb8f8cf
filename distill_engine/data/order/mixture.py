"""Which example comes next: a pure function of (seed, position).

Draw number j of a dataset with share w has its own moment (j + u) / w, u being a keyed random number in (0, 1). The
training order is all draws of all datasets by moment. After any time x a dataset was drawn within 1 of x * w times,
so shares never drift, yet the order has no period.

Draw number j of a dataset of n examples is element j % n of a keyed shuffle that is new for every j // n: within a
dataset each example comes once in a pass. With one dataset, or weights proportional to sizes, `epoch_size` draws are
exactly one pass over everything.

ParlAI draws an episode of a dataset by weight, with replacement, and plays all its turns one after the other, each in
another batch. Here the turns of an episode are examples of their own: a dataset's share of the examples is the same
(`example_weights`), but none is drawn twice before all have been drawn once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.errors import DataError
from distill_engine.data.order.shuffle import key_of, shuffled, stream

WeightsMean = Literal["episodes", "examples", "passes"]

_CHUNK_POSITIONS = 4096
# Few enough random bits that j + u stays exact in float64 up to 2**32 draws.
_MOMENT_BITS = 20


class Mixture:
    """An endless order of examples over several datasets.

    It depends on nothing but sizes, weights and seed: not on world size, batch size or where one starts to look.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        """`sizes`: examples of each dataset; `weights`: each dataset's share of the examples, relative to the others
        (`example_weights` makes them from a recipe's).

        Raises DataError for a dataset without examples or a weight that is not a positive number.
        """
        if not sizes or len(sizes) != len(weights):
            raise ValueError(f"{len(sizes)} sizes and {len(weights)} weights: give one of each for every dataset.")
        for dataset, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            if size < 1 or not (math.isfinite(weight) and weight > 0):
                raise DataError(
                    f"Dataset number {dataset + 1} has {size} training examples and weight {weight} (data.datasets). A "
                    "mixture needs at least one example and a weight above 0 for each. Remove it, or correct it."
                )
        self.sizes = tuple(int(size) for size in sizes)
        self.weights = tuple(float(weight) for weight in weights)
        self.seed = seed
        self._chunk = lru_cache(maxsize=4)(self._computed_chunk)

    @property
    def epoch_size(self) -> int:
        """Draws that count as one epoch: the number of examples of all datasets.

        As in ParlAI this is a count, not a pass: datasets weighted above their size are seen more than once in it.
        """
        return sum(self.sizes)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each dataset's share of the draws; they add up to 1."""
        total = math.fsum(self.weights)
        return tuple(weight / total for weight in self.weights)

    @property
    def fingerprint(self) -> str:
        """A short name of this order: equal for equal sizes, weights and seed."""
        return hashlib.blake2b(repr((self.sizes, self.weights, self.seed)).encode(), digest_size=8).hexdigest()

    def at(self, position: int) -> tuple[int, int]:
        """(dataset, example within the dataset) at a position >= 0."""
        datasets, examples = self._chunk(position // _CHUNK_POSITIONS)
        return int(datasets[position % _CHUNK_POSITIONS]), int(examples[position % _CHUNK_POSITIONS])

    def window(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Datasets and examples at positions start..stop-1, two arrays [stop - start]."""
        first, last = start // _CHUNK_POSITIONS, max(start, stop - 1) // _CHUNK_POSITIONS
        chunks = [self._chunk(number) for number in range(first, last + 1)]
        cut = slice(start - first * _CHUNK_POSITIONS, stop - first * _CHUNK_POSITIONS)
        datasets, examples = (np.concatenate(one) for one in zip(*chunks, strict=True))
        return datasets[cut], examples[cut]

    def _computed_chunk(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first = number * _CHUNK_POSITIONS
        datasets, draws = self._schedule(first, first + _CHUNK_POSITIONS)
        examples = np.empty_like(draws)
        for dataset, size in enumerate(self.sizes):
            mine = datasets == dataset
            examples[mine] = self._examples(dataset, draws[mine], size)
        return datasets, examples

    def _schedule(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which dataset, and which of its draws, at positions start..stop-1."""
        # The draw at position p has a moment within (number of datasets) of p; look a little further on both sides.
        margin = len(self.sizes) + 2
        each = range(len(self.sizes))
        per_dataset = [self._draws_between(dataset, start - margin, stop + margin) for dataset in each]
        earlier = sum(int(draws[0]) for draws, _ in per_dataset)
        datasets = np.concatenate([np.full(len(draws), dataset) for dataset, (draws, _) in enumerate(per_dataset)])
        draws = np.concatenate([draws for draws, _ in per_dataset])
        moments = np.concatenate([moments for _, moments in per_dataset])
        order = np.lexsort((datasets, moments))[start - earlier : stop - earlier]
        return datasets[order], draws[order]

    def _draws_between(self, dataset: int, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draws of a dataset and their moments: all that fall between two moments, and a few more."""
        total, weight = math.fsum(self.weights), self.weights[dataset]
        low = max(0, math.floor(begin * weight / total) - 2)
        high = max(low, math.ceil(end * weight / total)) + 2
        draws = np.arange(low, high, dtype=np.int64)
        noise = stream(key_of(self.seed, "moments", dataset), draws) >> np.uint64(64 - _MOMENT_BITS)
        jitter = (noise.astype(np.float64) + 0.5) / 2**_MOMENT_BITS
        return draws, (draws + jitter) * total / weight

    def _examples(self, dataset: int, draws: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        examples = np.empty_like(draws)
        passes = draws // size
        for number in np.unique(passes):
            mine = passes == number
            key = key_of(self.seed, "shuffle", dataset, int(number))
            examples[mine] = shuffled(draws[mine] % size, size, key)
        return examples


def example_weights(
    weights: Sequence[float],
    examples: Sequence[int],
    episodes: Sequence[int],
    weights_mean: WeightsMean,
    temperature: float = 1.0,
) -> list[float]:
    """Each dataset's share of the examples, up to a common factor, from what a recipe says.

    examples, episodes  sizes of each dataset
    weights_mean        what a weight is the relative chance of. episodes: an episode of the dataset is next, and all
                        its turns with it (ParlAI's --multitask-weights), so examples weigh weight * turns per episode;
                        examples: an example of the dataset is next; passes: any one example of the dataset, so with
                        equal weights every example of every dataset comes equally often (ParlAI's `stochastic`)
    temperature         above 1 brings the shares closer together: share ** (1 / temperature), then scaled to 1
    """
    per_example = {
        "episodes": [size / max(1, count) for size, count in zip(examples, episodes, strict=True)],
        "examples": [1.0] * len(examples),
        "passes": [float(size) for size in examples],
    }[weights_mean]
    raw = [weight * factor for weight, factor in zip(weights, per_example, strict=True)]
    if temperature == 1.0:
        return raw
    total = math.fsum(raw)
    return [(weight / total) ** (1.0 / temperature) for weight in raw]


def mixture_line(labels: Sequence[str], sizes: Sequence[int], shares: Sequence[float]) -> str:
    """For people: each dataset's examples, its share of the training examples, and how often one comes in an epoch."""
    epoch = sum(sizes)
    parts = [
        f"{label} {share:.1%} ({size:,} examples, each {share * epoch / size:.2f} times an epoch)"
        for label, size, share in zip(labels, sizes, shares, strict=True)
    ]
    return f"mixture, shares of the examples: {', '.join(parts)}"
