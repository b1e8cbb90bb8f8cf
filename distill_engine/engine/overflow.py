"""Where in a model numbers stop being those of its weights: the first output that is not finite or, in fp16, cut."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from distill_engine.values import Batch, Features, Stack

# transformers cuts fp16 outputs of some families' layers, where they have overflowed, to this much below the largest
# number: finite, and not what the model computes
_CUT_BELOW_LARGEST = 1000.0


def first_overflow(features: Features, batch: Batch) -> str:
    """The first of a model's outputs, in the order of its forward pass, that is not finite or was cut; else empty.

    features  with the hidden states of every layer, and no projections
    """
    for name, states, mask in _outputs(features, batch):
        peak = float(states[mask].abs().max()) if mask.any() else 0.0  # NaN where any is
        limit = torch.finfo(states.dtype).max
        if not peak <= limit:
            return f"{name} is the first whose output is not finite"
        if states.dtype == torch.float16 and peak >= limit - _CUT_BELOW_LARGEST:
            return f"{name} is the first whose output overflows, and transformers cuts it to {peak:g}"
    return ""


def _outputs(features: Features, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor]]:
    for stack in Stack:
        depth = sum(one is stack for one, _ in features.hidden)
        mask = batch.mask_of(stack)
        for layer in range(depth):
            states = features.hidden[stack, layer]
            assert isinstance(states, Tensor), "a teacher's states are not projected"
            yield f"{stack.value} layer {layer} of {depth} (from 0)", states, mask
    if features.logits is not None:
        yield "the output over the vocabulary, behind all layers,", features.logits, batch.label_mask
