"""Where the features of models that are built as BART are; needs torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from distill_engine.families.protocol import Parts, StackParts
from distill_engine.values import Batch, Stack

LOGITS_BIAS = "final_logits_bias"


def parts(model: PreTrainedModel) -> Parts:
    """See `protocol.Family.parts`."""
    whole: Any = model

    def run(batch: Batch) -> tuple[Tensor, Tensor]:
        output = whole.model(
            **batch.inputs.keywords,
            decoder_input_ids=batch.decoder_input_ids,
            use_cache=False,
        )
        return output.last_hidden_state, output.encoder_last_hidden_state

    return Parts(
        stacks={stack: _stack(getattr(whole.model, stack.value), stack) for stack in Stack},
        run=run,
        head=whole.lm_head,
        bias=LOGITS_BIAS if LOGITS_BIAS in dict(model.named_buffers()) else None,
    )


def _stack(module: Any, stack: Stack) -> StackParts:
    layers = list(module.layers)
    return StackParts(
        embedding=module.embed_tokens,
        scale=float(getattr(module.embed_tokens, "embed_scale", 1.0)),
        layers=layers,
        self_attention=[layer.self_attn for layer in layers],
        cross_attention=[layer.encoder_attn for layer in layers] if stack is Stack.DECODER else (),
    )
