"""Where the features of models that are built as T5 are; needs torch."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from distill_engine.families.bart_modules import parts_of
from distill_engine.families.protocol import Parts, StackParts
from distill_engine.values import Stack


def parts(model: PreTrainedModel) -> Parts:
    """See `protocol.Family.parts`."""
    whole: Any = model
    scaled = bool(getattr(model.config, "scale_decoder_outputs", False))
    return parts_of(whole, _stack, whole.lm_head, scale=float(model.config.d_model) ** -0.5 if scaled else 1.0)


def _stack(module: Any, stack: Stack) -> StackParts:
    blocks = list(module.block)
    return StackParts(
        embedding=module.embed_tokens,
        scale=1.0,
        layers=blocks,
        self_attention=[block.layer[0].SelfAttention for block in blocks],
        cross_attention=[block.layer[1].EncDecAttention for block in blocks] if stack is Stack.DECODER else (),
        biased=True,
    )
