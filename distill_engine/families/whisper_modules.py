"""Where the features of Whisper are; needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import gelu
from transformers import PreTrainedModel

from distill_engine.families.protocol import Parts, StackParts
from distill_engine.values import Batch, Stack


def parts(model: PreTrainedModel) -> Parts:
    """See `protocol.Family.parts`."""
    whole: Any = model

    def encode(batch: Batch) -> Tensor:
        # features keep their own type until here: the first convolution's weights say what is computed in. Not by way
        # of the whole model, which would mask a student's features, in place, where config.json asks for it
        heard = {key: value.to(whole.model.encoder.conv1.weight.dtype) for key, value in batch.inputs.keywords.items()}
        output: Tensor = whole.model.encoder(**heard).last_hidden_state
        return output

    def decode(batch: Batch, context: Tensor) -> Tensor:
        output: Tensor = whole.model.decoder(
            input_ids=batch.decoder_input_ids, encoder_hidden_states=context, use_cache=False
        ).last_hidden_state
        return output

    return Parts(
        stacks={stack: _stack(getattr(whole.model, stack.value), stack) for stack in Stack},
        encode=encode,
        decode=decode,
        head=whole.proj_out,
    )


def _stack(module: Any, stack: Stack) -> StackParts:
    layers = list(module.layers)
    return StackParts(
        embedding=module.conv2 if stack is Stack.ENCODER else module.embed_tokens,
        scale=1.0,
        bare=_sounded if stack is Stack.ENCODER else None,
        layers=layers,
        self_attention=[layer.self_attn for layer in layers],
        cross_attention=[layer.encoder_attn for layer in layers] if stack is Stack.DECODER else (),
    )


def _sounded(convolved: Tensor) -> Tensor:
    """[B, D, S] of the second convolution as the embedding [B, S, D] that positions are added to."""
    return gelu(convolved).transpose(1, 2)


def generate(model: PreTrainedModel, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """See `protocol.Family.generate`. What begins and ends texts is taken off by Whisper itself."""
    whole: Any = model
    ids: Tensor = whole.generate(**{key: value.to(whole.dtype) for key, value in inputs.items()}, **settings)
    return ids
