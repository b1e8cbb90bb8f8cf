"""A dataset as token ids: every word stored once, examples cut out of it on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.tokens.layout import SequenceLayout

Keep = Literal["first", "last"]


@dataclass(frozen=True, eq=False)
class Clip:
    """A piece of sound that is read instead of a context.

    title     names it for people: file and length
    seconds   its length, what fills the window up not counted
    features  computes or fetches [C, F] float32, a whole window; raises DataError where the sound is not what it was
    """

    title: str
    seconds: float
    features: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Example:
    """One example, cut to the limits, special tokens included.

    context_ids  [S] int32; none where a clip is read
    label_ids    [T] int32, ends with the end token unless it was cut
    prompt       what the decoder reads before this label, as many ids as the layout's own; empty: the layout's own
    """

    context_ids: NDArray[np.int32]
    label_ids: NDArray[np.int32]
    clip: Clip | None = None
    prompt: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenLimits:
    """Largest lengths, special ids included: contexts keep `context` ids, their last or first; labels their first
    `label`."""

    context: int
    label: int
    keep: Keep = "last"


@dataclass(frozen=True, eq=False)
class Notes:
    """A note of each example, UTF-8, one after the other.

    text          [N] uint8
    starts, ends  [examples] int64: of each example's in `text`
    """

    text: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, notes: Sequence[str]) -> Notes:
        """These texts."""
        encoded = [note.encode() for note in notes]
        return cls.after(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(one) for one in encoded]))

    @classmethod
    def after(cls, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> Notes:
        """Each begins where the one before ends."""
        return cls(text, np.concatenate([np.zeros(1, np.int64), ends])[:-1], ends)

    def __getitem__(self, index: int) -> str:
        return bytes(self.text[self.starts[index] : self.ends[index]]).decode()

    def __len__(self) -> int:
        return len(self.ends)

    def only(self, rows: NDArray[Any]) -> Notes:
        """Of some examples, by a mask or by numbers."""
        return Notes(self.text, self.starts[rows], self.ends[rows])

    @property
    def digest(self) -> str:
        """sha256 of the arrays, as `combined_digest` takes it."""
        return "".join(hashlib.sha256(np.ascontiguousarray(one).data).hexdigest() for one in (self.text, self.ends))


@dataclass(frozen=True)
class TokenFacts:
    """What is true of a whole dataset's tokens.

    episodes  episodes that hold an example
    largest   the largest token id, 0 if there is none
    digest    short name of all tokens and bounds: equal for equal ones
    """

    episodes: int
    largest: int
    digest: str

    @classmethod
    def of(cls, tokens: NDArray[np.int32], bounds: NDArray[np.int64], notes: Notes | None = None) -> TokenFacts:
        """The facts of these arrays."""
        digests = [hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for array in (tokens, bounds)]
        if notes is not None:
            digests.append(notes.digest)
        return cls(episodes_in(bounds), int(tokens.max(initial=0)), combined_digest(*digests))


def episodes_in(bounds: NDArray[np.int64]) -> int:
    """How many episodes the examples of [examples, 4] `bounds` come from."""
    return 0 if len(bounds) == 0 else 1 + int(np.count_nonzero(np.diff(bounds[:, 0])))


def ids_without_row(
    datasets: Sequence[TokenisedDataset], read_rows: int, written_rows: int
) -> tuple[str, int, int] | None:
    """(table, largest id, rows of the table) where embedding tables have too few rows for the datasets, else None."""
    if read_rows == written_rows:
        found = [("embedding", max(dataset.largest_id for dataset in datasets), read_rows)]
    else:
        read, written = zip(*(dataset.largest_ids for dataset in datasets), strict=True)
        found = [("encoder's embedding", max(read), read_rows), ("decoder's embedding", max(written), written_rows)]
    return next((one for one in found if one[1] >= one[2]), None)


def combined_digest(*digests: str) -> str:
    """One digest for the sha256 (hex) of the tokens', of the bounds' and of any notes' bytes."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class TokenisedDataset:
    """All examples of one dataset and split.

    tokens  [N] int32: the entries of all episodes one after the other, the delimiter between two entries of an
            episode. The context of an example is one stretch of it, because history repeats what was said before.
    bounds  [examples, 4] int64: where in `tokens` the example's episode begins, its context ends, its label begins
            and its label ends
    skipped examples left out because nothing at all was said before the reply (ParlAI leaves them out, too)
    facts   what can be told of the arrays; give it when it is known, because finding it out reads them whole
    notes   of the examples, in data whose kind keeps some
    left_out lines for people about rows that are no examples: filtered, or wrong and allowed to be

    Both arrays may be memory-mapped files: nothing here reads more of them than it is asked for.
    """

    tokens: NDArray[np.int32]
    bounds: NDArray[np.int64]
    layout: SequenceLayout
    limits: TokenLimits
    skipped: int = 0
    facts: TokenFacts | None = field(default=None, repr=False)
    notes: Notes | None = field(default=None, repr=False)
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.facts is None:
            object.__setattr__(self, "facts", TokenFacts.of(self.tokens, self.bounds, self.notes))

    def __len__(self) -> int:
        return len(self.bounds)

    def example(self, index: int) -> Example:
        """Example number `index`, 0 <= index < len(self)."""
        episode_start, context_end = (int(bound) for bound in self.bounds[index][:2])
        words = self._context_words
        if self.limits.keep == "first":
            context = self.tokens[episode_start : min(context_end, episode_start + words)]
        else:
            context = self.tokens[max(episode_start, context_end - words) : context_end]
        prefix = np.array(self.layout.context_prefix, np.int32)
        suffix = np.array(self.layout.context_suffix, np.int32)
        return Example(np.concatenate([prefix, context, suffix]), self._label(index))

    def _label(self, index: int) -> NDArray[np.int32]:
        start, end = (int(bound) for bound in self.bounds[index][2:])
        label = self.tokens[start : min(end, start + self.limits.label)]
        return np.append(label, np.int32(self.layout.end_id))[: self.limits.label]

    @property
    def context_lengths(self) -> NDArray[np.int64]:
        """[examples]: len(example(i).context_ids)."""
        return self._lengths(self.bounds)[0]

    @property
    def label_lengths(self) -> NDArray[np.int64]:
        """[examples]: len(example(i).label_ids)."""
        return self._lengths(self.bounds)[1]

    def lengths(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Context and label lengths of some examples; reads no others."""
        return self._lengths(self.bounds[indices])

    @property
    def episodes(self) -> int:
        """How many episodes the examples come from."""
        assert self.facts is not None
        return self.facts.episodes

    @property
    def digest(self) -> str:
        """Equal for equal tokens and bounds."""
        assert self.facts is not None
        return self.facts.digest

    @property
    def largest_id(self) -> int:
        """The largest token id that any example holds; a model's vocabulary must be larger."""
        assert self.facts is not None
        return max(*self.layout.largest_ids, self.facts.largest)

    @property
    def largest_ids(self) -> tuple[int, int]:
        """The same of contexts and of labels, for models that have a table for each; reads all tokens."""
        read, written = self.layout.largest_ids
        begins, ends, labels, label_ends = self.bounds.T
        return max(read, self._largest(begins, ends)), max(written, self._largest(labels, label_ends))

    def _largest(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> int:
        """Of some stretches of the tokens."""
        used = np.flatnonzero(ends > begins)
        if not len(used):
            return 0
        pairs = np.stack([begins[used], ends[used]], axis=1).flatten()
        # the last stretch may end where the tokens do, which is no place that can be asked for
        return int(np.maximum.reduceat(np.append(self.tokens, np.int32(0)), pairs)[::2].max())

    def _lengths(self, bounds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        contexts = np.minimum(bounds[:, 1] - bounds[:, 0], self._context_words) + self.layout.context_overhead
        labels = np.minimum(bounds[:, 3] - bounds[:, 2] + 1, self.limits.label)
        return contexts, labels

    @property
    def _context_words(self) -> int:
        return self.limits.context - self.layout.context_overhead
