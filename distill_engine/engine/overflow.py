"""Where in a model numbers stop being those of its weights: the first output that is not finite or, in fp16, cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distill_engine.values import Batch, Encoded, FeatureRequest, Features, Stack

# transformers cuts fp16 outputs of some families' layers, where they have overflowed, to this much below the largest
# number: finite, and not what the model computes
_CUT_BELOW_LARGEST = 1000.0


@torch.no_grad()
def searched(adapter: Any, batch: Batch, show: Callable[[Batch, FeatureRequest], Features] | None = None) -> str:
    """`first_overflow` by one more pass of a model, without dropout; where its encoder has run already, from the
    encoder's output on.

    adapter  models.adapter's; it is left in the mode that it was in    show  runs it; None: it is called
    """
    request, training = adapter.every_layer, adapter.training
    if isinstance(batch.inputs, Encoded):
        request = replace(request, hidden={Stack.DECODER: request.hidden[Stack.DECODER]})
    adapter.eval()
    try:
        return first_overflow((show or adapter)(batch, request), batch)
    finally:
        adapter.train(training)


def first_overflow(features: Features, batch: Batch) -> str:
    """The first of a model's outputs, in the order of its forward pass, that is not finite or was cut; else empty.

    features  with the hidden states of every layer and the encoder's output, as far as they are known; no projections
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
            assert isinstance(states, Tensor), "an adapter's own states are not projected"
            yield f"{stack.value} layer {layer} of {depth} (from 0)", states, mask
        if stack is Stack.ENCODER and isinstance(features.encoder_output, Tensor):
            yield "the encoder, behind all its layers,", features.encoder_output, mask
    if features.logits is not None:
        yield "the output over the vocabulary, behind all layers,", features.logits, batch.label_mask
