"""Divergence from the teacher's next-token distribution, summed over label tokens, times the temperature squared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_engine.losses.terms.protocol import NOTHING, Comparison, Counts, Layers, Operand, Term
from distill_engine.values import Batch, FeatureRequest, Features

if TYPE_CHECKING:
    from torch import Tensor


class Prediction(Term):
    """Which divergence: `losses.divergence`, by default KL(teacher || student)."""

    name, weight, meaning = "prediction", "prediction", "KL divergence from the teacher's next-token distribution"
    operand: Operand = "logits"

    def needs(self, _layers: Layers) -> FeatureRequest:
        """See Term."""
        return NOTHING

    def sum(self, _student: Features, _teacher: Features, _batch: Batch, kernels: Comparison) -> Tensor:
        """[] (see Term)."""
        return kernels.vocabulary.divergence

    def count(self, counts: Counts) -> Tensor:
        """Label tokens."""
        return counts.labels


PREDICTION = Prediction()
