"""What a kind of data is: what its rows mean, and what a recipe says of a source of them. Loaded without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field

from distill_engine.recipe.problem import Problem
from distill_engine.recipe.section import Positive, PositiveInt, Section

if TYPE_CHECKING:
    from distill_engine.data.audio.sound import Sounds
    from distill_engine.data.episodes import Episode, Split


class Source(Section):
    """One dataset of a recipe: the keys that every kind has. A kind's `Options` add its own."""

    kind: str = Field("dialogue", description="What the data is: see `distill list kinds`.")
    name: str = Field(description="Name in metrics.")
    label: str | None = Field(None, description="Name in metrics; null: same as name.")
    weight: Positive = Field(1.0, description="How often it comes, relative to the other datasets (data.weights_mean).")
    train: str | None = Field(None, description="Training file.")
    valid: str | None = Field(None, description="Validation file.")
    test: str | None = Field(None, description="Test file.")
    train_examples: PositiveInt | None = Field(None, description="Use only the first N training examples.")
    valid_examples: PositiveInt | None = Field(None, description="Use only the first N validation examples.")

    @property
    def title(self) -> str:
        """Its name in metrics and messages."""
        return self.label or self.name

    def file(self, split: Split) -> str | None:
        """The file named for a split, or None."""
        named: str | None = getattr(self, split)
        return named

    def limit(self, split: Split) -> int | None:
        """How many examples of a split are used; None: all."""
        return {"train": self.train_examples, "valid": self.valid_examples, "test": None}[split]


@dataclass
class Reading:
    """What a kind is told beside its options while it reads, and what it tells of it.

    root          folder of downloaded datasets (data.root), or None
    seconds       length of the window that a model hears; longer sounds are wrong. None: nothing is heard
    languages     codes that rows may name; None: those that the model knows are not known here
    max_bad_rows  rows that may be left out because they are wrong, all files of a split together
    bad           one message for each row that was
    dropped       reason -> rows that the source's own filters left out
    """

    root: str | None = None
    max_bad_rows: int = 0
    seconds: float | None = None
    languages: Collection[str] | None = None
    bad: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def leave_out(self, error: ValueError) -> None:
        """Count a wrong row. Raises the error itself where there are more than may be."""
        self.bad.append(str(error))
        if len(self.bad) > self.max_bad_rows:
            if self.max_bad_rows == 0:
                raise error
            raise type(error)(
                f"{error}\nThis is bad row number {len(self.bad)}, and data.max_bad_rows is {self.max_bad_rows}. The "
                f"first one: {self.bad[0]}"
            ) from error

    @property
    def lines(self) -> list[str]:
        """What people should know of it; nothing where all rows were good and none was filtered."""
        told = []
        if self.bad:
            told.append(f"{len(self.bad)} bad rows are left out (data.max_bad_rows), the first one: {self.bad[0]}")
        if self.dropped:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.most_common())
            told.append(f"filters left out {sum(self.dropped.values()):,} rows: {reasons}")
        return told


@dataclass(frozen=True)
class Writer:
    """Writes examples of a source with other answers.

    row    (entries, answer, note) -> the object. entries: the history with what is answered as its last one, of data
           without a history that alone; note: of the turn that is answered. May raise OSError, DataError
    files  names of all files that the objects so far need in the folder of `Kind.writer`
    names  which such files have, as a pattern (`*.wav`): those that no object needs are removed; empty: none is made
    """

    row: Callable[[Sequence[str], str, str], Mapping[str, object]]
    files: set[str] = field(default_factory=set)
    names: str = ""


@dataclass(frozen=True)
class Guess:
    """How a recipe would name data that a kind recognises: the entry of data.tasks, and why it is that.

    metrics    what such data is judged by, where that is not the kind's first metric
    languages  a column that seems to say each row's language, and what stands there in the first rows
    """

    entry: Mapping[str, object]
    why: str
    metrics: tuple[str, ...] = ()
    languages: tuple[str, Collection[str]] | None = None


class Kind(Protocol):
    """One kind of data: dialogue, pairs of texts.

    Recipes are checked with `Options` and `problems`; set-up asks `has` and `facts` at every start, and `read` when a
    split's tokens are not in the cache; `distill data show` prints `words`; `distill new` asks `guess` and the
    metrics, `distill pseudo-label` `writer` and `entry`. It is this small because tokenising, limits, caching, mixing,
    batching and validating are the same for all kinds. Made once, shared, without state.

    name     in recipes; the name it is registered by
    meaning  half a sentence for tables
    inputs   what the encoder reads of it
    keep     which tokens of an input stay where it has more than data.context_tokens; empty where inputs are sounds
    metrics  by what finished students are judged, the deciding one first
    words    what people call an input and an answer of it
    version  raised whenever the same rows give other examples, so that nobody's cached tokens are believed any more
    Options  what a recipe says of one source
    """

    name: str
    meaning: str
    inputs: Literal["tokens", "audio"] = "tokens"
    keep: Literal["first", "last", ""] = "last"
    metrics: tuple[str, ...] = ("ppl",)
    words: tuple[str, str] = ("context", "label")
    version: int = 1
    Options: type[Source] = Source

    def problems(self, source: Source, root: str | None) -> Iterator[Problem]:
        """What is wrong with a source before anything is read; `path` of a problem is the key within the source."""
        yield from ()

    def problems_of_all(self, sources: Sequence[Source], root: str | None) -> Iterator[Problem]:
        """What is wrong with all sources of the kind together; `path` of a problem is the recipe's key."""
        yield from ()

    def has(self, source: Source, split: Split) -> bool:
        """Whether the source has the split."""
        return source.file(split) is not None

    def guess(self, data: Mapping[str, str]) -> Guess | None:
        """The source that data is of which nothing else is known, by its first rows; None where it is of another kind.

        data  split -> file or folder, or for `train` alone a name of the Hub. May raise DataError.
        """
        return None

    def languages(self, source: Source) -> tuple[str | None, str | None]:
        """The options `source_language` and `target_language` of a kind that has them: codes of the tokenizer."""
        return None, None

    def language_column(self, source: Source) -> str | None:
        """The option `language` of a kind whose rows may each name a target language: their column."""
        return None

    def files(self, source: Source, split: Split, root: str | None) -> list[Path]:
        """The files that a split is read from: with `facts` all that decides what `read` gives. None: it makes its
        examples up, which are not cached. Raises DataError where they are not there."""
        ...

    def facts(self, source: Source, split: Split) -> Mapping[str, object]:
        """The options that decide what `read` gives of the files, as plain values."""
        names = set(type(source).model_fields) - set(Source.model_fields)
        return source.model_dump(mode="json", include=names) | {"name": source.name, "limit": source.limit(split)}

    def sounds(self, source: Source, split: Split) -> Sounds:
        """The sounds of a split, of a kind whose inputs are audio; notes of `read` say where (data.audio.clips)."""
        raise ValueError(f"data of kind {self.name} holds no sounds")

    def stores_features(self, source: Source) -> bool:
        """Whether features of its sounds are computed once and kept on the disk."""
        return False

    def rows(self, source: Source, split: Split) -> int | None:
        """How many sounds a split has at most, counted without looking at them; None where that takes a network or
        files that are not there."""
        return None

    def writer(self, source: Source, folder: Path) -> Writer:
        """Writes the source's examples with other answers, as objects of JSON lines which `entry` reads.

        folder  beside those lines: for files that examples need and that are nowhere yet; made with the first of them
        Raises ValueError where a kind cannot write its examples.
        """
        raise ValueError(f"{source.title} is of kind {self.name}, which does not say how examples are written")

    def entry(self, source: Source) -> Mapping[str, object]:
        """Keys of the entry of data.tasks, beside its file, label and weight, that reads what `writer` gives of a
        source."""
        return {"kind": self.name}

    def read(self, source: Source, split: Split, reading: Reading) -> Iterator[Episode]:
        """The split's examples in the source's order, one episode at a time: turns that are read as one history; data
        without a history gives episodes of one turn. Raises DataError with file and line."""
        ...
