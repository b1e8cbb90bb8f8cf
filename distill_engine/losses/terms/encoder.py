"""Squared error of the encoder's output; never clamped, as in ParlAI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_engine.losses.terms.protocol import Comparison, Counts, Layers, Operand, Term
from distill_engine.values import Batch, FeatureRequest, Features

if TYPE_CHECKING:
    from torch import Tensor


class EncoderOutput(Term):
    """What the decoder reads."""

    name, weight, meaning = "encoder", "encoder", "squared error of the encoder's output"
    operand: Operand = "vectors"

    def needs(self, _layers: Layers) -> FeatureRequest:
        """See Term."""
        return FeatureRequest(logits=False, encoder_output=True)

    def sum(self, student: Features, teacher: Features, batch: Batch, kernels: Comparison) -> Tensor:
        """[1] (see Term)."""
        assert student.encoder_output is not None and teacher.encoder_output is not None
        pairs = [student.encoder_output], [teacher.encoder_output]
        return kernels.vectors(*pairs, batch.context_mask, clamped=False)

    def count(self, counts: Counts) -> Tensor:
        """Context tokens."""
        return counts.contexts


ENCODER = EncoderOutput()
