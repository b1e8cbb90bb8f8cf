"""Whose text the student learns on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.rollouts.config import RolloutSection
from distill_engine.teachers.protocol import Teacher
from distill_engine.values import Batch


class Rollout(Protocol):
    """Gives the micro-batches that are learnt on.

    The training loop asks once per optimizer step, on all ranks, before the step's counts are summed: labels may be
    replaced (by the student's own samples: with Batch.sampled), other examples may not come or go. What it draws must
    follow from the batch and the recipe's seed, or be in its state: a rollout with `state_dict` and `load_state_dict`
    goes with the checkpoints (part `rollout`). It leaves modes and random streams as they are.
    """

    def batches(self, group: Sequence[Batch], teacher: Teacher | None, student: Any) -> Sequence[Batch]:
        """The micro-batches to learn on, as many as `group` has, on the same device.

        group    those of the data, on the ranks' device
        student  the engine that trains (train.roles.Student), in train mode
        """
        ...


@dataclass(frozen=True)
class RolloutParts:
    """What a run has for a rollout to be made of.

    section                                the recipe's
    new_tokens                             of a sample, at most
    layout                                 what stands around words
    end_ids                                tokens that end a text
    suppressed                             tokens that are never said
    forced                                 the token that a text has to begin with, or None
    pad_to_multiple_of, max_tokens         of the recipe's batches
    """

    seed: int
    rank: int
    world_size: int
    section: RolloutSection
    new_tokens: int
    layout: SequenceLayout
    end_ids: tuple[int, ...]
    suppressed: tuple[int, ...]
    forced: int | None
    pad_to_multiple_of: int
    max_tokens: int | None


class Source(Protocol):
    """What a name of rollout.source stands for; meaning: a line for `distill list rollouts`."""

    meaning: ClassVar[str]

    def open(self, parts: RolloutParts) -> Rollout:
        """The rollout of this run; once, on all ranks, after the student was built."""
        ...
