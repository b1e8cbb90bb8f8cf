"""What every reader gives: episodes of turns."""

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
