"""Which examples make up which micro-batch of training, as a pure function of the position in the mixture.

A micro-batch is a run of rows that one rank reads at once. `PlainPlan` cuts the mixture's order into runs of equal
count, `SortedStepPlan` the examples of each step, sorted by length. `TokenBudgetPlan` cuts the order into windows of
consecutive examples, sorts each window by length, cuts it into micro-batches of about equal cost (padded positions) and
shuffles these: neighbours in length share a batch, so little of it is padding, and since a window holds exactly what
the mixture drew, its shares are the mixture's. Single micro-batches are uneven (one of short contexts holds more of the
datasets with short ones); over a window that evens out.

Each gives one endless sequence of micro-batches, whoever reads it. An optimizer step takes the next
accumulation_steps * world_size of it, so which examples a step sees depends on that product alone. A position is a
number of examples handed out; a step ends where a micro-batch ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.errors import DataError
from distill_engine.data.order.collate import Picks
from distill_engine.data.order.mixture import Mixture
from distill_engine.data.order.shuffle import key_of, stream
from distill_engine.data.tokens.layout import SequenceLayout

# Strips of equal context length into which a window may be cut before each is sorted by label length.
_STRIP_COUNTS = (1, 2, 4, 8, 16, 32, 64)
# Share of a window that may be examples that it holds already.
_REPEATS = 0.05


# Lengths of the contexts and labels of some examples, given their datasets and their numbers in these.
Lengths = Callable[[NDArray[np.int64], NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.int64]]]


class BatchPlan(Protocol):
    """An endless sequence of micro-batches."""

    @property
    def fingerprint(self) -> str:
        """A short name of this sequence: equal for equal ones."""

    def take(self, position: int, count: int) -> list[Picks]:
        """The next `count` micro-batches from a position. Raises DataError for one inside a micro-batch."""


class PlainPlan:
    """Micro-batches of `rows` examples in the mixture's order."""

    def __init__(self, mixture: Mixture, rows: int) -> None:
        self._mixture = mixture
        self._rows = rows

    @property
    def fingerprint(self) -> str:
        """That of the mixture: neither rows nor sorting change which examples a step has."""
        return self._mixture.fingerprint

    def take(self, position: int, count: int) -> list[Picks]:
        """The next `count` micro-batches; any position will do."""
        starts = range(position, position + count * self._rows, self._rows)
        return [Picks(*self._mixture.window(start, start + self._rows)) for start in starts]


class SortedStepPlan(PlainPlan):
    """What `PlainPlan` gives a step, cut into micro-batches by length: the same examples, less padding.

    The ranks' micro-batches of one moment are about equally long, so that none waits for another; which lengths come
    first is drawn anew for each step.
    """

    def __init__(self, mixture: Mixture, rows: int, lengths: Lengths, ranks: int) -> None:
        """`take` is to be asked for whole steps: a multiple of `ranks` micro-batches of `rows` examples."""
        super().__init__(mixture, rows)
        self._lengths = lengths
        self._ranks = ranks

    def take(self, position: int, count: int) -> list[Picks]:
        """The next `count` micro-batches; any position will do."""
        datasets, examples = self._mixture.window(position, position + count * self._rows)
        contexts, labels = self._lengths(datasets, examples)
        order = np.lexsort((labels, contexts))
        moments = np.split(order, range(self._ranks * self._rows, len(order), self._ranks * self._rows))
        key = key_of(self._mixture.seed, "moments of a step", position)
        places = np.argsort(stream(key, np.arange(len(moments), dtype=np.int64)), kind="stable")
        return [
            Picks(datasets[moment[rank::sharing]], examples[moment[rank::sharing]])
            for moment in (moments[place] for place in places)
            for sharing in (len(moment) // self._rows,)
            for rank in range(sharing)
        ]


class Cost:
    """Positions that examples take up in a batch, padding counted: rows * (context + decoder length)."""

    def __init__(self, layout: SequenceLayout, pad_to_multiple_of: int) -> None:
        self._extra = layout.label_pad_prefix
        self._multiple = pad_to_multiple_of

    def padded(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Lengths rounded up as `collate` does."""
        return -(-lengths // self._multiple) * self._multiple

    def of_row(self, context: int, label: int) -> int:
        """Positions of one row of a batch whose longest padded context and label these are."""
        return context + label + self._extra


class TokenBudgetPlan:
    """Micro-batches of at most `max_tokens` padded positions (one example that is longer makes one all the same)."""

    def __init__(
        self,
        mixture: Mixture,
        lengths: Lengths,
        cost: Cost,
        max_tokens: int,
        window: int,
    ) -> None:
        """`lengths(datasets, examples)` gives lengths of texts. `window`: examples sorted at a time; fewer
        where many would come round again in it, because copies, equally long, would share batches."""
        self._mixture = mixture
        self._lengths = lengths
        self._cost = cost
        self._max_tokens = max_tokens
        self._window = _with_few_repeats(mixture, window)
        self._batches = lru_cache(maxsize=3)(self._cut_window)

    @property
    def fingerprint(self) -> str:
        """Tells the mixture, the budget and the window."""
        return f"{self._mixture.fingerprint}/{self._max_tokens}/{self._window}"

    def take(self, position: int, count: int) -> list[Picks]:
        """The next `count` micro-batches, from any position at which one ends."""
        batches = self._from(position)
        return [next(batches) for _ in range(count)]

    def _from(self, position: int) -> Iterator[Picks]:
        number, inside = divmod(position, self._window)
        while True:
            batches, ends = self._batches(number)
            first = int(np.searchsorted(ends, inside, side="right"))
            if inside not in (0, ends[first - 1]):
                raise DataError(
                    f"The data position {position} is inside a micro-batch of this recipe. Lengths of examples, "
                    "batch.max_tokens or batch.length_window are not those of the run that was there. Restore them, "
                    "or start a new run folder."
                )
            yield from batches[first:]
            number, inside = number + 1, 0

    def _cut_window(self, number: int) -> tuple[list[Picks], NDArray[np.int64]]:
        """Micro-batches of a window in the order of training, and how many examples come up to the end of each."""
        datasets, examples, contexts, labels = self._measured(number)
        order = _in_strips(contexts, labels, self._strips)
        runs = np.split(order, self._filled(contexts[order].tolist(), labels[order].tolist())[0])
        key = key_of(self._mixture.seed, "micro-batches", number)
        places = np.argsort(stream(key, np.arange(len(runs), dtype=np.int64)), kind="stable")
        batches = [Picks(datasets[runs[place]], examples[runs[place]]) for place in places]
        return batches, np.cumsum([len(batch.datasets) for batch in batches])

    def _measured(self, number: int) -> tuple[NDArray[np.int64], ...]:
        """Datasets, examples, padded context lengths and padded label lengths of a window, [window] each."""
        datasets, examples = self._mixture.window(number * self._window, (number + 1) * self._window)
        contexts, labels = self._lengths(datasets, examples)
        return datasets, examples, self._cost.padded(contexts), self._cost.padded(labels)

    @cached_property
    def _strips(self) -> int:
        """The number of strips that wastes least in the first window; the others are alike, and need no search."""
        _, _, contexts, labels = self._measured(0)

        def positions(strips: int) -> int:
            order = _in_strips(contexts, labels, strips)
            return self._filled(contexts[order].tolist(), labels[order].tolist())[1]

        return min(_STRIP_COUNTS, key=positions)

    def _filled(self, contexts: Sequence[int], labels: Sequence[int]) -> tuple[list[int], int]:
        """Where rows in this order are cut so that each run is as long as the budget lets it, and what all cost."""
        cuts: list[int] = []
        context = label = begin = positions = 0
        for place, (own_context, own_label) in enumerate(zip(contexts, labels, strict=True)):
            wider, taller = max(context, own_context), max(label, own_label)
            if place > begin and (place + 1 - begin) * self._cost.of_row(wider, taller) > self._max_tokens:
                positions += (place - begin) * self._cost.of_row(context, label)
                cuts.append(place)
                begin, wider, taller = place, own_context, own_label
            context, label = wider, taller
        return cuts, positions + (len(contexts) - begin) * self._cost.of_row(context, label)


def _with_few_repeats(mixture: Mixture, most: int) -> int:
    """The largest window up to `most` of which at most `_REPEATS` are examples that came in it before."""

    def fits(window: int) -> bool:
        beyond = (share * window - size for size, share in zip(mixture.sizes, mixture.shares, strict=True))
        return sum(max(0.0, repeats) for repeats in beyond) <= _REPEATS * window

    fitting, too_large = 1, most + 1
    while too_large - fitting > 1:  # the share of repeats grows with the window
        middle = (fitting + too_large) // 2
        fitting, too_large = (middle, too_large) if fits(middle) else (fitting, middle)
    return fitting


def _in_strips(contexts: NDArray[np.int64], labels: NDArray[np.int64], strips: int) -> NDArray[np.int64]:
    """An order by context length in `strips` equally large parts, each by label length, up and down in turn."""
    by_context = np.lexsort((labels, contexts))
    parts = []
    for number, part in enumerate(np.array_split(by_context, strips)):
        by_label = part[np.lexsort((contexts[part], labels[part]))]
        parts.append(by_label[::-1] if number % 2 else by_label)
    return np.concatenate(parts)
