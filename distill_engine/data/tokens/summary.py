"""How long a dataset's texts (or sounds) are, and how much of them the limits cut off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.audio.clips import SpeechDataset
from distill_engine.data.tokens.tokenised import TokenisedDataset

_BINS = 8


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens, special ones included, before anything is cut.

    mean, median, most (95 % are no longer), longest
    limit      tokens that are kept
    cut        share of texts longer than that, 0 to 1
    histogram  (longest length of the bin, share of texts), in order; the last bin is what is above the limit
    """

    mean: float
    median: int
    most: int
    longest: int
    limit: int
    cut: float
    histogram: tuple[tuple[int | None, float], ...]

    @classmethod
    def of(cls, lengths: NDArray[np.int64], limit: int) -> Lengths:
        """The summary of at least one length."""
        width = -(-limit // _BINS)
        ends = [*range(width, limit, width), limit]
        below = [int(np.count_nonzero(lengths <= end)) for end in ends]
        counts = [after - before for before, after in zip([0, *below], [*below, len(lengths)], strict=False)]
        bins = zip([*ends, None], counts, strict=True)
        return cls(
            mean=float(lengths.mean()),
            median=int(np.percentile(lengths, 50, method="lower")),
            most=int(np.percentile(lengths, 95, method="higher")),
            longest=int(lengths.max()),
            limit=limit,
            cut=counts[-1] / len(lengths),
            histogram=tuple((end, count / len(lengths)) for end, count in bins),
        )


@dataclass(frozen=True)
class DatasetSummary:
    """Size and lengths of one dataset and split; where sounds are heard, those of contexts are tenths of seconds."""

    examples: int
    episodes: int
    contexts: Lengths
    labels: Lengths
    heard: bool = False


def summarise(dataset: TokenisedDataset) -> DatasetSummary:
    """The summary of a dataset that holds at least one example."""
    contexts, labels = uncut_lengths(dataset)
    heard, most = isinstance(dataset, SpeechDataset), dataset.limits.context
    if isinstance(dataset, SpeechDataset):
        contexts, most = np.ceil(dataset.seconds * 10).astype(np.int64), round(dataset.frontend.seconds * 10)
    return DatasetSummary(
        examples=len(dataset),
        episodes=dataset.episodes,
        contexts=Lengths.of(contexts, most),
        labels=Lengths.of(labels, dataset.limits.label),
        heard=heard,
    )


def uncut_lengths(dataset: TokenisedDataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[examples] each: tokens of contexts and labels as they would be without limits, special ones included."""
    bounds = dataset.bounds
    return bounds[:, 1] - bounds[:, 0] + dataset.layout.context_overhead, bounds[:, 3] - bounds[:, 2] + 1
