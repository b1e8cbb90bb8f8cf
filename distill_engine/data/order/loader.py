"""Batches of one rank: the endless training order, and each validation example exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.errors import DataError
from distill_engine.data.order.buckets import BatchPlan, Cost, Lengths, PlainPlan, TokenBudgetPlan
from distill_engine.data.order.collate import Picks, collate, filler_batch, pinned
from distill_engine.data.order.mixture import Mixture
from distill_engine.data.order.prefetch import Prefetcher
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenised import Example, TokenLimits
from distill_engine.values import Batch

_STATE_VERSION = 1
_STEPS_AHEAD = 4  # enough to sort the next window meanwhile


class ExampleSource(Protocol):
    """What the loaders need of a tokenised dataset; both ask from a background thread."""

    @property
    def limits(self) -> TokenLimits:
        """The lengths that contexts and labels were cut to."""

    @property
    def context_lengths(self) -> NDArray[np.int64]:
        """[examples]: tokens of each context."""

    @property
    def label_lengths(self) -> NDArray[np.int64]:
        """[examples]: tokens of each label."""

    def __len__(self) -> int:
        """Number of examples."""

    def example(self, index: int) -> Example:
        """One example."""


class MeasuredSource(ExampleSource, Protocol):
    """A source that can tell the lengths of a few examples without those of all."""

    def lengths(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Context and label lengths of some examples."""


def token_budget_plan(
    datasets: Sequence[MeasuredSource],
    mixture: Mixture,
    layout: SequenceLayout,
    *,
    max_tokens: int,
    window: int,
    pad_to_multiple_of: int,
) -> TokenBudgetPlan:
    """Micro-batches of about equal lengths and at most `max_tokens` padded positions (see data.buckets)."""
    return TokenBudgetPlan(mixture, lengths_in(datasets), Cost(layout, pad_to_multiple_of), max_tokens, window)


def lengths_in(datasets: Sequence[MeasuredSource]) -> Lengths:
    """How long some examples of several datasets are."""

    def lengths(numbers: NDArray[np.int64], examples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        contexts, labels = np.empty_like(examples), np.empty_like(examples)
        for number, dataset in enumerate(datasets):
            mine = numbers == number
            contexts[mine], labels[mine] = dataset.lengths(examples[mine])
        return contexts, labels

    return lengths


class TrainLoader:
    """The micro-batches of each optimizer step, for one rank.

    A step takes the next accumulation_steps * world_size micro-batches of the plan, which is the mixture cut into runs
    of `per_rank` examples unless another one is given. Rank r has number m * world_size + r of them as its m-th: which
    examples a step sees depends on the product alone, and every rank has equally many. Batches are made ahead by a
    background thread. Close it when done, or use it in a `with` statement.
    """

    def __init__(
        self,
        datasets: Sequence[ExampleSource],
        mixture: Mixture,
        layout: SequenceLayout,
        *,
        per_rank: int,
        accumulation_steps: int,
        pad_to_multiple_of: int,
        rank: int,
        world_size: int,
        plan: BatchPlan | None = None,
        pin_memory: bool = False,
    ) -> None:
        """`mixture` must have been made for the sizes of `datasets` (else ValueError), `plan` for the mixture.

        pin_memory  put batches where a GPU can fetch them by itself while the processor goes on
        """
        if tuple(len(dataset) for dataset in datasets) != mixture.sizes:
            held = [len(dataset) for dataset in datasets]
            raise ValueError(f"The mixture is for datasets of {mixture.sizes} examples, not {held}.")
        _check_rank(rank, world_size)
        self._datasets = datasets
        self._mixture = mixture
        self._layout = layout
        self._plan = plan or PlainPlan(mixture, per_rank)
        self._accumulation_steps = accumulation_steps
        self._pad_to_multiple_of = pad_to_multiple_of
        self._rank = rank
        self._world_size = world_size
        self._pin_memory = pin_memory
        self._position = 0
        self._prefetcher = self._started()

    @property
    def examples(self) -> int:
        """Examples handed out to all ranks together; batches that wait in the background do not count."""
        return self._position

    @property
    def position(self) -> int:
        """Where in the mixture the next step begins: the same number."""
        return self._position

    @property
    def epoch(self) -> float:
        """Epochs handed out so far: `position` / `mixture.epoch_size`."""
        return self._position / self._mixture.epoch_size

    def next_group(self) -> list[Batch]:
        """The micro-batches of the next optimizer step, `accumulation_steps` of them.

        Raises what making them raised; the position then stays where it is.
        """
        group, self._position = self._prefetcher.take()
        return group

    def state_dict(self) -> dict[str, int | str]:
        """Where the order goes on: the same on every rank, and good for any world size."""
        return {"version": _STATE_VERSION, "position": self._position, "mixture": self._plan.fingerprint}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Go on from a saved state. Raises DataError when it belongs to another mixture or is not such a state."""
        position = _valid_position(state, self._plan)
        self._prefetcher.close()
        self._position = position
        self._prefetcher = self._started()

    def close(self) -> None:
        """Stop the background thread; no group can be taken afterwards. May be called twice."""
        self._prefetcher.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _started(self) -> Prefetcher[tuple[list[Batch], int]]:
        begin = self._position

        def make(_number: int) -> tuple[list[Batch], int]:
            """One thread calls this, step after step; after a failure nothing that it makes is taken any more."""
            nonlocal begin
            group, begin = self._group(begin)
            return group, begin

        return Prefetcher(make, ahead=_STEPS_AHEAD)

    def _group(self, position: int) -> tuple[list[Batch], int]:
        """This rank's batches of the step at a position, and the position after it."""
        picks = self._plan.take(position, self._accumulation_steps * self._world_size)
        mine = picks[self._rank :: self._world_size]
        batches = [picked_batch(self._datasets, part, self._layout, self._pad_to_multiple_of) for part in mine]
        if self._pin_memory:
            batches = [pinned(batch) for batch in batches]
        return batches, position + sum(len(part.datasets) for part in picks)


class ValidationLoader:
    """One rank's part of all examples of all datasets; iterate as often as you like.

    Over all ranks every example comes exactly once, long ones first and neighbours equally long, to save padding. A
    batch may mix datasets. Every rank gives the same number of batches; where the last one finds no example, it is a
    `filler_batch`.
    """

    def __init__(
        self,
        datasets: Sequence[ExampleSource],
        layout: SequenceLayout,
        *,
        per_rank: int,
        rank: int,
        world_size: int,
        pad_to_multiple_of: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """`per_rank`: examples of one batch on one rank; `pin_memory` as for training."""
        _check_rank(rank, world_size)
        self._pin_memory = pin_memory
        self._datasets = datasets
        self._layout = layout
        self._pad_to_multiple_of = pad_to_multiple_of
        self._batches = _rank_batches(datasets, per_rank, rank, world_size)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        prefetcher = Prefetcher(self._batch, count=len(self))
        try:
            for _ in range(len(self)):
                yield prefetcher.take()
        finally:
            prefetcher.close()

    def _batch(self, number: int) -> Batch:
        picks = self._batches[number]
        if len(picks.datasets) == 0:
            return filler_batch(self._layout)
        batch = picked_batch(self._datasets, picks, self._layout, self._pad_to_multiple_of)
        return pinned(batch) if self._pin_memory else batch


def length_sorted_batches(datasets: Sequence[ExampleSource], per_batch: int) -> list[Picks]:
    """Every example of all datasets once, longest contexts first, so that batches hold little padding."""
    sizes = [len(dataset) for dataset in datasets]
    dataset_ids = np.repeat(np.arange(len(datasets)), sizes)
    indices = np.concatenate([np.arange(size) for size in sizes])
    contexts = np.concatenate([dataset.context_lengths for dataset in datasets])
    labels = np.concatenate([dataset.label_lengths for dataset in datasets])
    order = np.lexsort((indices, dataset_ids, -labels, -contexts))
    parts = np.split(order, range(per_batch, len(order), per_batch))
    return [Picks(dataset_ids[part], indices[part]) for part in parts]


def _rank_batches(datasets: Sequence[ExampleSource], per_rank: int, rank: int, world_size: int) -> list[Picks]:
    """Datasets and indices of each batch of a rank; the last global batch is shared out as evenly as it goes."""
    return [
        Picks(*(np.array_split(part, world_size)[rank] for part in picks))
        for picks in length_sorted_batches(datasets, per_rank * world_size)
    ]


def picked_batch(
    sources: Sequence[ExampleSource], picks: Picks, layout: SequenceLayout, pad_to_multiple_of: int
) -> Batch:
    """The picked examples as one batch (see collate)."""
    pairs = zip(picks.datasets.tolist(), picks.examples.tolist(), strict=True)
    examples = [sources[dataset].example(number) for dataset, number in pairs]
    return collate(examples, layout, pad_to_multiple_of, sources[0].limits, picks)


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}: ranks are 0 to world_size - 1.")


def _valid_position(state: Mapping[str, int | str], plan: BatchPlan) -> int:
    if state.get("version") != _STATE_VERSION:
        raise DataError(
            f"The data position in the checkpoint has version {state.get('version')!r}; this program reads version "
            f"{_STATE_VERSION}. Resume with the program that wrote it, or start a new run folder."
        )
    if state.get("mixture") != plan.fingerprint:
        raise DataError(
            f"The checkpoint's data order is {state.get('mixture')!r}, this run's is {plan.fingerprint!r}: dataset "
            "sizes, weights, seed or batch.max_tokens have changed. A resumed run needs the same data. Restore the "
            "files and data.datasets as they were, or start a new run folder."
        )
    position = state.get("position")
    if not isinstance(position, int) or isinstance(position, bool) or position < 0:
        raise DataError(f"The data position in the checkpoint is {position!r}, not a count. Use an older checkpoint.")
    plan.take(position, 1)
    return position
