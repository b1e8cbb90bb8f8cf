"""What the terms of one micro-batch are computed with and divided by (see losses.terms.protocol)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from distill_engine.losses.kernels.dispatch import Kernels, attention_sums, hidden_sums
from distill_engine.losses.vocabulary import Sums
from distill_engine.values import AttentionKind, Batch, Features, Projected, Stack

Definition = Literal["parlai", "invariant"]


@dataclass(frozen=True)
class MicroBatchComparison:
    """The arithmetic of one micro-batch: terms.protocol.Comparison."""

    vocabulary: Sums
    supervision: Mapping[Stack, Sequence[int]]
    kernels: Kernels
    definition: Definition
    clamp: float | None

    def vectors(
        self,
        students: Sequence[Tensor | Projected],
        teachers: Sequence[Tensor | Projected],
        mask: Tensor,
        clamped: bool = True,
    ) -> Tensor:
        """[pairs] float32."""
        return hidden_sums(self.kernels.hidden, students, teachers, mask, self.clamp if clamped else None)

    def scores(self, kind: AttentionKind, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """[layers] float32; ParlAI's are a mean over the padded key length.

        Decoder self-attention has no padding mask on keys (ParlAI): right padding lies after every valid query, so the
        causal mask already excludes it.
        """
        teacher_layers = self.supervision[kind.query_stack]
        students = [student.attention[kind, layer] for layer in range(len(teacher_layers))]
        teachers = [teacher.attention[kind, layer] for layer in teacher_layers]
        causal = kind is AttentionKind.DECODER_SELF
        keys = None if causal else batch.context_mask
        queries = batch.mask_of(kind.query_stack)
        divisor = students[0].key.shape[2] if self.definition == "parlai" else 1
        return attention_sums(self.kernels.attention, students, teachers, queries, keys, causal, self.clamp, divisor)


class BatchCounts:
    """How many elements of one micro-batch count (terms.protocol.Counts), each counted once, in whole numbers."""

    def __init__(self, batch: Batch, definition: Definition) -> None:
        self._batch = batch
        self._definition = definition

    @cached_property
    def contexts(self) -> Tensor:
        """[]: context tokens."""
        return self._batch.context_mask.sum()

    @cached_property
    def labels(self) -> Tensor:
        """[]: label tokens."""
        return self._batch.label_mask.sum()

    def scores(self, kind: AttentionKind) -> Tensor:
        """[]: pairs of a query and a key that it sees (product of the lengths of each example; of a causal attention
        as many keys as the query's place says), or with ParlAI's definition queries."""
        encoder = kind.query_stack is Stack.ENCODER
        if self._definition == "parlai":
            return self.contexts if encoder else self.labels
        if kind is AttentionKind.DECODER_SELF:
            mask = self._batch.label_mask
            return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).sum()
        return ((self._contexts if encoder else self._labels) * self._contexts).sum()

    @cached_property
    def _contexts(self) -> Tensor:
        """[B]."""
        return self._batch.context_mask.sum(dim=1)

    @cached_property
    def _labels(self) -> Tensor:
        """[B]."""
        return self._batch.label_mask.sum(dim=1)
