"""Any text, with inputs that are read once: for a student that shares the encoder with its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill_engine.rollouts.protocol import Rollout
from distill_engine.teachers.protocol import Teacher
from distill_engine.values import Batch


class EncodedOnce:
    """Another rollout's micro-batches, with the encoder's output in place of what it read; all of a step's at a time.

    A state is the other's own.
    """

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    def batches(self, group: Sequence[Batch], teacher: Teacher | None, student: Any) -> Sequence[Batch]:
        """As the protocol says; the student's encoder is frozen (models.adapter)."""
        return [student.encoded(batch) for batch in self._rollout.batches(group, teacher, student)]
