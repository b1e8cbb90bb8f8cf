"""Direction of mapped layers' outputs, whatever their length (Sanh et al. 2019, DistilBERT)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_engine.losses.terms.hidden import Hidden
from distill_engine.losses.terms.protocol import Comparison
from distill_engine.values import Batch, Features, Stack

if TYPE_CHECKING:
    from torch import Tensor


class HiddenCosine(Hidden):
    """Of one stack."""

    weight = "hidden_cosine"
    proposed = False

    def sum(self, student: Features, teacher: Features, batch: Batch, kernels: Comparison) -> Tensor:
        """[M] (see Term): 1 - cosine, summed over tokens."""
        import torch

        from distill_engine.losses.kernels.cosine import cosine_distance_sum

        teacher_layers, mask = kernels.supervision[self.stack], batch.mask_of(self.stack)
        return torch.stack(
            [
                cosine_distance_sum(student.hidden[self.stack, layer], teacher.hidden[self.stack, right], mask)
                for layer, right in enumerate(teacher_layers)
            ]
        )


ENCODER = HiddenCosine("encoder_hidden_cosine", "1 - cosine of the mapped encoder layers' outputs", Stack.ENCODER)
DECODER = HiddenCosine("decoder_hidden_cosine", "1 - cosine of the mapped decoder layers' outputs", Stack.DECODER)
