"""The examples that models are evaluated on, cut into fixed batches.

Which examples make up batch number n depends on the data and the batch size alone, not on how many processes share
the work or where an interrupted one goes on: so the sums are the same to the last bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.order.loader import length_sorted_batches, picked_batch
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenised import TokenisedDataset
from distill_engine.evaluate.generate import Prompts, row_prompts
from distill_engine.values import Batch


@dataclass(frozen=True)
class Example:
    """One example as texts: dataset number, what was said before (or which sound it is), and the whole right answer
    (never cut).

    length  of the input, in words, or in whole seconds of sound
    """

    dataset: int
    context: str
    reference: str
    length: int


class EvaluationSet:
    """All examples of some datasets, long ones first and neighbours about equally long, in batches of `per_batch`."""

    def __init__(
        self, datasets: Sequence[TokenisedDataset], layout: SequenceLayout, tokenizer: Any, per_batch: int
    ) -> None:
        """Raises ValueError if `per_batch` is not positive."""
        if per_batch < 1:
            raise ValueError(f"the batch size is {per_batch}; it must be at least 1.")
        self.datasets = tuple(datasets)
        self._layout = layout
        self._tokenizer = tokenizer
        self._picks = length_sorted_batches(self.datasets, per_batch)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._picks)

    @property
    def examples(self) -> int:
        """Number of examples of all datasets."""
        return sum(len(dataset) for dataset in self.datasets)

    @property
    def longest_context(self) -> int:
        """Tokens of the longest context; 0 where windows of sound are read, which have no other length."""
        if self._layout.window is not None:
            return 0
        return max(int(dataset.context_lengths.max(initial=0)) for dataset in self.datasets)

    @property
    def longest_decoder_input(self) -> int:
        """Positions that the decoder needs for the longest label."""
        return max(self._layout.decoder_length(int(dataset.label_lengths.max(initial=0))) for dataset in self.datasets)

    @property
    def unit(self) -> str:
        """Of lengths of inputs."""
        return "words" if self._layout.window is None else "seconds"

    def batch(self, number: int) -> Batch:
        """Batch `number`, 0 <= number < len(self), on the CPU."""
        return picked_batch(self.datasets, self._picks[number], self._layout, 1)

    def prompts(self, batch: Batch) -> Prompts | None:
        """What replies to one of its batches begin with, where rows name languages of their own."""
        return row_prompts(batch, self._layout)

    def texts(self, number: int) -> list[Example]:
        """The texts of batch `number`, in its order."""
        datasets, indices = self._picks[number]
        return [
            self._texts_of(dataset, index) for dataset, index in zip(datasets.tolist(), indices.tolist(), strict=True)
        ]

    def ids(self, number: int) -> list[tuple[int, int]]:
        """Dataset number and number of the example within it, of batch `number`, in its order."""
        datasets, indices = self._picks[number]
        return list(zip(datasets.tolist(), indices.tolist(), strict=True))

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any token, limit, layout or the batches."""
        digest = hashlib.sha256(repr((self._layout, [len(datasets) for datasets, _ in self._picks])).encode())
        for dataset in self.datasets:
            digest.update(repr((dataset.limits, dataset.layout, dataset.digest)).encode())
        return digest.hexdigest()[:16]

    def _texts_of(self, dataset: int, index: int) -> Example:
        source = self.datasets[dataset]
        episode_start, context_end, label_start, label_end = (int(bound) for bound in source.bounds[index])
        reference, clip = self._decode(source.tokens[label_start:label_end]), source.example(index).clip
        if clip is not None:
            return Example(dataset, clip.title, reference, round(clip.seconds))
        context = self._decode(source.tokens[episode_start:context_end])
        return Example(dataset, context, reference, len(context.split()))

    def _decode(self, ids: NDArray[np.int32]) -> str:
        # special tokens that somebody typed are ordinary text in the data, so nothing is skipped
        return str(self._tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)).strip()
