"""Squared error of mapped layers' outputs (the residual stream), at every token of a stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_engine.losses.terms.protocol import Comparison, Counts, Layers, Operand, Term
from distill_engine.values import Batch, FeatureRequest, Features, Stack

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class Hidden(Term):
    """Of one stack."""

    name: str
    meaning: str
    stack: Stack
    weight = "hidden"
    operand: Operand = "vectors"
    layered = True

    def needs(self, layers: Layers) -> FeatureRequest:
        """See Term."""
        return FeatureRequest(logits=False, hidden={self.stack: layers[self.stack]})

    def sum(self, student: Features, teacher: Features, batch: Batch, kernels: Comparison) -> Tensor:
        """[M] (see Term)."""
        teacher_layers = kernels.supervision[self.stack]
        students = [student.hidden[self.stack, layer] for layer in range(len(teacher_layers))]
        teachers = [teacher.hidden[self.stack, layer] for layer in teacher_layers]
        return kernels.vectors(students, teachers, batch.mask_of(self.stack))

    def count(self, counts: Counts) -> Tensor:
        """Tokens of the stack."""
        return counts.contexts if self.stack is Stack.ENCODER else counts.labels


ENCODER = Hidden("encoder_hidden", "squared error of the mapped encoder layers' outputs", Stack.ENCODER)
DECODER = Hidden("decoder_hidden", "squared error of the mapped decoder layers' outputs", Stack.DECODER)
