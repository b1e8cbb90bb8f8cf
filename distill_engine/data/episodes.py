"""What every reader gives: episodes of turns; and what it is given: a dataset's description by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "valid", "test"]
LabelTurns = Literal["second_speaker", "first_speaker", "both", "last"]


@dataclass(frozen=True)
class Turn:
    """Somebody says `text` and is answered `label`: an example, unless it is there only as the history of others.

    note  what its kind keeps of it beside the texts, such as where its sound is
    """

    text: str
    label: str
    learnt: bool = True
    note: str = ""


@dataclass(frozen=True)
class Episode:
    """One conversation. The context of a turn is every earlier text and label of the episode, then its own text."""

    turns: tuple[Turn, ...]

    def first(self, examples: int) -> Episode:
        """Up to its example number `examples`, at least 1; the whole where it has no more."""
        learnt = [position for position, turn in enumerate(self.turns) if turn.learnt]
        return Episode(self.turns[: learnt[examples - 1] + 1]) if len(learnt) > examples else self

    @property
    def examples(self) -> int:
        """How many there are."""
        return sum(turn.learnt for turn in self.turns)


@dataclass(frozen=True)
class DialogueSpec:
    """One data source, as plain values with the names that a recipe uses.

    name        which reader: an entry of `readers.READERS`
    label       name in metrics; None: same as name (read it through `title`)
    weight      share of the training mixture, relative to the other datasets
    train, valid, test   file of each split, for the file formats
    label_turns conversations: whose turns are learnt
    train_examples, valid_examples, test_examples   keep only the first N examples of a split; None: all
    seed        demo: seed of the generator
    root        folder that holds downloaded dialogue datasets, for readers that look there
    topic_split wizard_of_wikipedia: valid and test are about topics that training never saw
    normalized  hf_dataset with ConvAI2's columns: texts as `convai2:normalized` has them
    """

    name: str
    label: str | None = None
    weight: float = 1.0
    train: str | None = None
    valid: str | None = None
    test: str | None = None
    label_turns: LabelTurns = "second_speaker"
    train_examples: int | None = None
    valid_examples: int | None = None
    test_examples: int | None = None
    seed: int = 0
    root: str | None = None
    topic_split: bool = False
    normalized: bool = True

    @property
    def title(self) -> str:
        """The dataset's name in metrics and messages."""
        return self.label or self.name

    def file(self, split: Split) -> str | None:
        """The file named for a split, or None."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]

    def limit(self, split: Split) -> int | None:
        """How many examples of a split are used; None: all."""
        limits = {"train": self.train_examples, "valid": self.valid_examples, "test": self.test_examples}
        return limits[split]
