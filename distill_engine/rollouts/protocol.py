"""Whose text the student learns on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from distill_engine.teachers.protocol import Teacher
from distill_engine.values import Batch


class Rollout(Protocol):
    """What a name of rollout.source stands for; meaning: a line for `distill list rollouts`.

    The training loop asks once per optimizer step, on all ranks, before the step's counts are summed: labels may be
    replaced, other examples may not come or go. What it draws must follow from the batch and the recipe's seed, or be
    in its state: a rollout with `state_dict` and `load_state_dict` goes with the checkpoints (part `rollout`).
    """

    meaning: ClassVar[str]

    def batches(self, group: Sequence[Batch], teacher: Teacher | None, student: Any) -> Sequence[Batch]:
        """The micro-batches to learn on, as many as `group` has, on the same device.

        group    those of the data, on the ranks' device
        student  the engine that trains (train.roles.Student), in train mode
        """
        ...
