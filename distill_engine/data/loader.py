"""Batches of one rank: the endless training order, and each validation example exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.collate import collate, filler_batch
from distill_engine.data.errors import DataError
from distill_engine.data.layout import SequenceLayout
from distill_engine.data.mixture import Mixture
from distill_engine.data.prefetch import Prefetcher
from distill_engine.data.tokenised import Example
from distill_engine.values import Batch

_STATE_VERSION = 1


class ExampleSource(Protocol):
    """What the loaders need of a tokenised task; both ask from a background thread."""

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


class TrainLoader:
    """The micro-batches of each optimizer step, for one rank.

    A step takes the next per_rank * accumulation_steps * world_size positions of the mixture. Micro-batch m has the
    m-th part of them, rank r the r-th part of that: which examples a step sees depends on the product alone. Batches
    are made ahead by a background thread. Close it when done, or use it in a `with` statement.
    """

    def __init__(
        self,
        tasks: Sequence[ExampleSource],
        mixture: Mixture,
        layout: SequenceLayout,
        *,
        per_rank: int,
        accumulation_steps: int,
        pad_to_multiple_of: int,
        rank: int,
        world_size: int,
    ) -> None:
        """`mixture` must have been made for the sizes of `tasks` (else ValueError)."""
        if tuple(len(task) for task in tasks) != mixture.sizes:
            raise ValueError(f"The mixture is for tasks of {mixture.sizes} examples, not {[len(t) for t in tasks]}.")
        _check_rank(rank, world_size)
        self._tasks = tasks
        self._mixture = mixture
        self._layout = layout
        self._per_rank = per_rank
        self._accumulation_steps = accumulation_steps
        self._pad_to_multiple_of = pad_to_multiple_of
        self._rank = rank
        self._world_size = world_size
        self._position = 0
        self._prefetcher = self._started()

    @property
    def examples_per_step(self) -> int:
        """Examples of one optimizer step, all ranks and micro-batches together."""
        return self._per_rank * self._accumulation_steps * self._world_size

    @property
    def position(self) -> int:
        """Where in the mixture the next step begins; batches that wait in the background do not count."""
        return self._position

    @property
    def epoch(self) -> float:
        """Epochs handed out so far: `position` / `mixture.epoch_size`."""
        return self._position / self._mixture.epoch_size

    def next_group(self) -> list[Batch]:
        """The micro-batches of the next optimizer step, `accumulation_steps` of them.

        Raises what making them raised; the position then stays where it is.
        """
        group = self._prefetcher.take()
        self._position += self.examples_per_step
        return group

    def state_dict(self) -> dict[str, int | str]:
        """Where the order goes on: the same on every rank, and good for any world size."""
        return {"version": _STATE_VERSION, "position": self._position, "mixture": self._mixture.fingerprint}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Go on from a saved state. Raises DataError when it belongs to another mixture or is not such a state."""
        position = _valid_position(state, self._mixture)
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

    def _started(self) -> Prefetcher[list[Batch]]:
        begin = self._position
        return Prefetcher(lambda step: self._group(begin + step * self.examples_per_step))

    def _group(self, base: int) -> list[Batch]:
        stride = self._per_rank * self._world_size
        offset = base + self._rank * self._per_rank
        return [self._micro_batch(offset + number * stride) for number in range(self._accumulation_steps)]

    def _micro_batch(self, start: int) -> Batch:
        tasks, indices = self._mixture.window(start, start + self._per_rank)
        return _collated(self._tasks, tasks, indices, self._layout, self._pad_to_multiple_of)


class ValidationLoader:
    """One rank's part of all examples of all tasks; iterate as often as you like.

    Over all ranks every example comes exactly once, long ones first and neighbours equally long, to save padding. A
    batch may mix tasks. Every rank gives the same number of batches; where the last one finds no example, it is a
    `filler_batch`.
    """

    def __init__(
        self,
        tasks: Sequence[ExampleSource],
        layout: SequenceLayout,
        *,
        per_rank: int,
        rank: int,
        world_size: int,
        pad_to_multiple_of: int = 1,
    ) -> None:
        """`per_rank`: examples of one batch on one rank."""
        _check_rank(rank, world_size)
        self._tasks = tasks
        self._layout = layout
        self._pad_to_multiple_of = pad_to_multiple_of
        self._batches = _rank_batches(tasks, per_rank, rank, world_size)

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
        tasks, indices = self._batches[number]
        if len(tasks) == 0:
            return filler_batch(self._layout)
        return _collated(self._tasks, tasks, indices, self._layout, self._pad_to_multiple_of)


Picks = tuple[NDArray[np.int64], NDArray[np.int64]]


def _rank_batches(tasks: Sequence[ExampleSource], per_rank: int, rank: int, world_size: int) -> list[Picks]:
    """Tasks and indices of each batch of a rank; the last global batch is shared out as evenly as it goes."""
    sizes = [len(task) for task in tasks]
    task_ids = np.repeat(np.arange(len(tasks)), sizes)
    indices = np.concatenate([np.arange(size) for size in sizes])
    contexts = np.concatenate([task.context_lengths for task in tasks])
    labels = np.concatenate([task.label_lengths for task in tasks])
    order = np.lexsort((indices, task_ids, -labels, -contexts))
    cuts = range(per_rank * world_size, len(order), per_rank * world_size)
    mine = [np.array_split(part, world_size)[rank] for part in np.split(order, cuts)]
    return [(task_ids[part], indices[part]) for part in mine]


def _collated(
    sources: Sequence[ExampleSource],
    tasks: NDArray[np.int64],
    indices: NDArray[np.int64],
    layout: SequenceLayout,
    pad_to_multiple_of: int,
) -> Batch:
    pairs = zip(tasks.tolist(), indices.tolist(), strict=True)
    examples = [sources[task].example(index) for task, index in pairs]
    return collate(examples, tasks.tolist(), layout, pad_to_multiple_of)


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}: ranks are 0 to world_size - 1.")


def _valid_position(state: Mapping[str, int | str], mixture: Mixture) -> int:
    if state.get("version") != _STATE_VERSION:
        raise DataError(
            f"The data position in the checkpoint has version {state.get('version')!r}; this program reads version "
            f"{_STATE_VERSION}. Resume with the program that wrote it, or start a new run folder."
        )
    if state.get("mixture") != mixture.fingerprint:
        raise DataError(
            f"The checkpoint's data order is {state.get('mixture')!r}, this run's is {mixture.fingerprint!r}: task "
            "sizes, weights or seed have changed. A resumed run needs the same data. Restore the files and data.tasks "
            "as they were, or start a new run folder."
        )
    position = state.get("position")
    if not isinstance(position, int) or isinstance(position, bool) or position < 0:
        raise DataError(f"The data position in the checkpoint is {position!r}, not a count. Use an older checkpoint.")
    return position
