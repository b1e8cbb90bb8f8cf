"""The data's own text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from distill_engine.rollouts.protocol import Rollout, RolloutParts
from distill_engine.teachers.protocol import Teacher
from distill_engine.values import Batch


class Gold:
    """Micro-batches as the data has them."""

    meaning: ClassVar[str] = "the dataset's own labels"

    def open(self, parts: RolloutParts) -> Rollout:  # noqa: ARG002
        """Itself: it has no state."""
        return self

    def batches(self, group: Sequence[Batch], teacher: Teacher | None, student: Any) -> Sequence[Batch]:  # noqa: ARG002
        """They themselves."""
        return group


GOLD = Gold()
