"""Where the features of models that are built as T5 are; needs torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from distill_engine.families.protocol import Parts, StackParts
from distill_engine.values import Batch, Stack


def parts(model: PreTrainedModel) -> Parts:
    """See `protocol.Family.parts`."""
    whole: Any = model
    scaled = bool(getattr(model.config, "scale_decoder_outputs", False))

    def encode(batch: Batch) -> Tensor:
        output: Tensor = whole.encoder(**batch.inputs.keywords).last_hidden_state
        return output

    def decode(batch: Batch, context: Tensor) -> Tensor:
        output: Tensor = whole.decoder(
            input_ids=batch.decoder_input_ids,
            encoder_hidden_states=context,
            encoder_attention_mask=batch.inputs.attention_mask,
            use_cache=False,
        ).last_hidden_state
        return output

    return Parts(
        stacks={stack: _stack(getattr(whole, stack.value), stack) for stack in Stack},
        encode=encode,
        decode=decode,
        head=whole.lm_head,
        scale=float(model.config.d_model) ** -0.5 if scaled else 1.0,
    )


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
