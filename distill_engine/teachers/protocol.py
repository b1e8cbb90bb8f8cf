"""What a teacher is to a run, wherever its outputs come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from distill_engine.values import Batch, FeatureRequest, Features


class Teacher(Protocol):
    """Gives the teacher's features of micro-batches. So small that weights in memory, files and servers all fit.

    The training loop calls it once per optimizer step with the micro-batches of that step, the validator once per
    batch. Both do so on every rank, at the same moment, with the same request: an implementation may be collective.
    """

    def features(self, group: Sequence[Batch], request: FeatureRequest) -> Iterator[Features]:
        """One item per micro-batch, in order, without gradients; computed when it is asked for.

        Keeps no item that it has handed out, so that the caller alone decides how long one lives.
        """
        ...
