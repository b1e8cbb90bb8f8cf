"""Squared error of token embeddings, unscaled and without positions, at every token of a stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_engine.losses.terms.protocol import Comparison, Counts, Layers, Operand, Term
from distill_engine.values import Batch, FeatureRequest, Features, Stack

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class Embedding(Term):
    """Of one stack."""

    name: str
    meaning: str
    stack: Stack
    weight = "embedding"
    operand: Operand = "vectors"

    def needs(self, _layers: Layers) -> FeatureRequest:
        """See Term."""
        return FeatureRequest(logits=False, embeddings=frozenset({self.stack}))

    def sum(self, student: Features, teacher: Features, batch: Batch, kernels: Comparison) -> Tensor:
        """[1] (see Term)."""
        pairs = [student.embeddings[self.stack]], [teacher.embeddings[self.stack]]
        return kernels.vectors(*pairs, batch.mask_of(self.stack))

    def count(self, counts: Counts) -> Tensor:
        """Tokens of the stack."""
        return counts.contexts if self.stack is Stack.ENCODER else counts.labels


ENCODER = Embedding("encoder_embedding", "squared error of the encoder's token embeddings", Stack.ENCODER)
DECODER = Embedding("decoder_embedding", "squared error of the decoder's token embeddings", Stack.DECODER)
