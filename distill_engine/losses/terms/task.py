"""Cross-entropy with the reference: -log p(label), summed over label tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_engine.losses.terms.protocol import NOTHING, Comparison, Counts, Layers, Operand, Term
from distill_engine.values import Batch, FeatureRequest, Features

if TYPE_CHECKING:
    from torch import Tensor


class Task(Term):
    """The one term that compares with the data, not with a teacher."""

    name, weight, meaning = "task", "task", "cross-entropy with the reference"
    operand: Operand = "logits"
    default, distils = 1.0, False

    def needs(self, _layers: Layers) -> FeatureRequest:
        """See Term."""
        return NOTHING

    def sum(self, _student: Features, _teacher: Features, _batch: Batch, kernels: Comparison) -> Tensor:
        """[] (see Term)."""
        return kernels.vocabulary.task

    def count(self, counts: Counts) -> Tensor:
        """Label tokens."""
        return counts.labels


TASK = Task()
