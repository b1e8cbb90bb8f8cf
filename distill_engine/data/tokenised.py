"""A task as token ids: every word stored once, examples cut out of it on demand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.layout import SequenceLayout


@dataclass(frozen=True, eq=False)
class Example:
    """One example, cut to the limits, special tokens included.

    context_ids  [S] int32
    label_ids    [T] int32, ends with the end token unless it was cut
    """

    context_ids: NDArray[np.int32]
    label_ids: NDArray[np.int32]


@dataclass(frozen=True)
class TokenLimits:
    """Largest lengths: contexts keep their last `context`, labels their first `label` ids, special ones included."""

    context: int
    label: int


@dataclass(frozen=True, eq=False)
class TokenisedTask:
    """All examples of one task and split.

    tokens  [N] int32: the entries of all episodes one after the other, the delimiter between two entries of an
            episode. The context of an example is one stretch of it, because history repeats what was said before.
    bounds  [examples, 4] int64: where in `tokens` the example's episode begins, its context ends, its label begins
            and its label ends
    skipped examples left out because nothing at all was said before the reply (ParlAI leaves them out, too)
    """

    tokens: NDArray[np.int32]
    bounds: NDArray[np.int64]
    layout: SequenceLayout
    limits: TokenLimits
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.bounds)

    def example(self, index: int) -> Example:
        """Example number `index`, 0 <= index < len(self)."""
        episode_start, context_end, label_start, label_end = (int(bound) for bound in self.bounds[index])
        words = self._context_words
        context = self.tokens[max(episode_start, context_end - words) : context_end]
        label = self.tokens[label_start : min(label_end, label_start + self.limits.label)]
        ended = np.append(label, np.int32(self.layout.end_id))[: self.limits.label]
        prefix = np.array(self.layout.context_prefix, np.int32)
        suffix = np.array(self.layout.context_suffix, np.int32)
        return Example(np.concatenate([prefix, context, suffix]), ended)

    @property
    def context_lengths(self) -> NDArray[np.int64]:
        """[examples]: len(example(i).context_ids)."""
        words = np.minimum(self.bounds[:, 1] - self.bounds[:, 0], self._context_words)
        return words + self.layout.context_overhead

    @property
    def label_lengths(self) -> NDArray[np.int64]:
        """[examples]: len(example(i).label_ids)."""
        return np.minimum(self.bounds[:, 3] - self.bounds[:, 2] + 1, self.limits.label)

    @property
    def largest_id(self) -> int:
        """The largest token id that any example holds; a model's vocabulary must be larger."""
        special = (self.layout.pad_id, self.layout.start_id, self.layout.end_id)
        return max(*special, int(self.tokens.max(initial=0)))

    @property
    def _context_words(self) -> int:
        return self.limits.context - self.layout.context_overhead
