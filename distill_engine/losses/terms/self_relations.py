"""Self-attention relations (Wang et al. 2021, MiniLMv2): how tokens relate to each other, not how heads do.

Queries of all heads are put side by side and cut into relation heads, as many in both models; each says by a softmax
of scaled products how much a token resembles every other. The same of keys. Widths and numbers of heads may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_engine.losses.terms.protocol import Comparison, Counts, Layers, Operand, Term
from distill_engine.values import AttentionKind, Batch, FeatureRequest, Features, Stack

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class Relations(Term):
    """Of one stack's self-attention: query-query and key-key. Values are not captured."""

    name: str
    meaning: str
    kind: AttentionKind
    weight: str = "self_relations"
    operand: Operand = "relations"
    proposed = False
    layered: bool = True

    def needs(self, layers: Layers) -> FeatureRequest:
        """See Term."""
        return FeatureRequest(logits=False, attention={self.kind: layers[self.kind.query_stack]})

    def sum(self, student: Features, teacher: Features, batch: Batch, kernels: Comparison) -> Tensor:
        """[M] (see Term): KL(teacher || student) of both relations, mean over relation heads, summed over tokens."""
        import torch

        from distill_engine.losses.kernels.relations import relation_sum

        stack, causal = self.kind.query_stack, self.kind is AttentionKind.DECODER_SELF
        mask, sums = batch.mask_of(stack), []
        for layer, right in enumerate(kernels.supervision[stack]):
            own, other = student.attention[self.kind, layer], teacher.attention[self.kind, right]
            of_queries = relation_sum(own.query, other.query, mask, causal)
            sums.append(of_queries + relation_sum(own.key, other.key, mask, causal))
        return torch.stack(sums)

    def count(self, counts: Counts) -> Tensor:
        """Tokens of the stack."""
        return counts.contexts if self.kind.query_stack is Stack.ENCODER else counts.labels


_MEANING = "KL of query-query and key-key relations in {} self-attention (MiniLMv2)"
ENCODER = Relations("encoder_self_relations", _MEANING.format("encoder"), AttentionKind.ENCODER_SELF)
DECODER = Relations("decoder_self_relations", _MEANING.format("decoder"), AttentionKind.DECODER_SELF)
