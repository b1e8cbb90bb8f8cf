"""Where the features of models that are built as BART are; needs torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from distill_engine.families.protocol import Parts, StackParts
from distill_engine.values import Batch, Stack

LOGITS_BIAS = "final_logits_bias"


def parts(model: PreTrainedModel) -> Parts:
    """See `protocol.Family.parts`."""
    whole: Any = model
    bias = LOGITS_BIAS if LOGITS_BIAS in dict(model.named_buffers()) else None
    return parts_of(whole.model, _stack, whole.lm_head, bias=bias)


def parts_of(body: Any, stack_of: Callable[[Any, Stack], StackParts], head: Any, **more: Any) -> Parts:
    """Of a model whose two stacks `body` has, called as BART's are; `more`: what else Parts are told."""

    def encode(batch: Batch) -> Tensor:
        output: Tensor = body.encoder(**batch.inputs.keywords).last_hidden_state
        return output

    def decode(batch: Batch, context: Tensor) -> Tensor:
        output: Tensor = body.decoder(
            input_ids=batch.decoder_input_ids,
            encoder_hidden_states=context,
            encoder_attention_mask=batch.inputs.attention_mask,
            use_cache=False,
        ).last_hidden_state
        return output

    stacks = {stack: stack_of(getattr(body, stack.value), stack) for stack in Stack}
    return Parts(stacks=stacks, encode=encode, decode=decode, head=head, **more)


def _stack(module: Any, stack: Stack) -> StackParts:
    layers = list(module.layers)
    return StackParts(
        embedding=module.embed_tokens,
        scale=float(getattr(module.embed_tokens, "embed_scale", 1.0)),
        outer_scale=float(getattr(module, "embed_scale", 1.0)),
        layers=layers,
        self_attention=[layer.self_attn for layer in layers],
        cross_attention=[layer.encoder_attn for layer in layers] if stack is Stack.DECODER else (),
    )
