"""Squared error of attention scores before the softmax, over pairs of a query that counts and a key that it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_engine.losses.terms.protocol import Comparison, Counts, Layers, Operand, Term
from distill_engine.values import AttentionKind, Batch, FeatureRequest, Features

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class Scores(Term):
    """Of one kind of attention."""

    name: str
    meaning: str
    kind: AttentionKind
    weight: str = "self_attention"
    operand: Operand = "scores"
    layered: bool = True

    def needs(self, layers: Layers) -> FeatureRequest:
        """See Term."""
        return FeatureRequest(logits=False, attention={self.kind: layers[self.kind.query_stack]})

    def sum(self, student: Features, teacher: Features, batch: Batch, kernels: Comparison) -> Tensor:
        """[M] (see Term)."""
        return kernels.scores(self.kind, student, teacher, batch)

    def count(self, counts: Counts) -> Tensor:
        """Visible pairs (see Counts)."""
        return counts.scores(self.kind)


ENCODER = Scores(
    "encoder_self_attention",
    "squared error of encoder self-attention scores before softmax",
    AttentionKind.ENCODER_SELF,
)
DECODER = Scores(
    "decoder_self_attention",
    "squared error of decoder self-attention scores before softmax",
    AttentionKind.DECODER_SELF,
)
