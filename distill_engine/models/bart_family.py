"""Blenderbot and BART: one adapter, one table of their differences.

Conventions are ParlAI's `transformer/generator` (= Blenderbot) and `bart` agents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
)

from distill_engine.models import capture
from distill_engine.values import AttentionKind, Batch, FeatureRequest, Features, OutputHead, Stack


@dataclass(frozen=True)
class Family:
    """How one model family differs from the others.

    masks_start_logit     ParlAI's generators never predict START: its logit is set to the dtype's "minus infinity"
    end_before_start      the decoder reads [END, START, y...], and the first position predicts nothing
    wraps_context         contexts are START ... END (else they may end with END, a data option)
    final_norms           parameter prefixes of the norms outside the layers (ParlAI's `norm_embeddings`)
    extra_position_rows   rows the position tables hold in front of position 0
    """

    name: str
    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    masks_start_logit: bool
    end_before_start: bool
    wraps_context: bool
    final_norms: tuple[str, ...]
    extra_position_rows: int

    def masked_id(self, config: Any) -> int | None:
        """The token that a model of this configuration never predicts, if there is one."""
        return config.bos_token_id if self.masks_start_logit else None

    def position_table(self, stack: Stack) -> str:
        """Parameter name of a stack's position table."""
        return f"model.{stack.value}.embed_positions.weight"

    def layer_prefix(self, stack: Stack, layer: int) -> str:
        """Prefix of all parameters of one layer."""
        return f"model.{stack.value}.layers.{layer}."


FAMILIES: dict[str, Family] = {
    "blenderbot": Family(
        name="blenderbot",
        config_class=BlenderbotConfig,
        model_class=BlenderbotForConditionalGeneration,
        masks_start_logit=True,
        end_before_start=False,
        wraps_context=False,
        final_norms=("model.encoder.layer_norm.", "model.decoder.layer_norm."),
        extra_position_rows=0,
    ),
    "bart": Family(
        name="bart",
        config_class=BartConfig,
        model_class=BartForConditionalGeneration,
        masks_start_logit=False,
        end_before_start=True,
        wraps_context=True,
        final_norms=("model.encoder.layernorm_embedding.", "model.decoder.layernorm_embedding."),
        extra_position_rows=2,
    ),
}


def masked_logit_value(dtype: torch.dtype) -> float:
    """ParlAI's minus infinity: -1e20, or the lowest finite number where that does not fit (fp16)."""
    return max(-1e20, torch.finfo(dtype).min)


class BartFamilyAdapter(nn.Module):
    """Shows the features of a Blenderbot or BART model; see `models.adapter.Adapter`."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self._recorder = capture.Recorder()
        capture.use_capturing_attention(model)
        stacks: dict[Stack, Any] = {Stack.ENCODER: model.model.encoder, Stack.DECODER: model.model.decoder}
        for stack, module in stacks.items():
            self._attach_stack(stack, module)
        # asked once: looking at the values waits for the device
        self._has_logits_bias = bool(torch.count_nonzero(self._logits_bias))

    def _attach_stack(self, stack: Stack, module: Any) -> None:
        self_kind = AttentionKind.ENCODER_SELF if stack is Stack.ENCODER else AttentionKind.DECODER_SELF
        scale = float(module.embed_tokens.embed_scale)
        capture.attach_embedding(
            module.embed_tokens, self._recorder, stack, lambda out: out if scale == 1.0 else out / scale
        )
        for number, layer in enumerate(module.layers):
            capture.attach_hidden(layer, self._recorder, stack, number)
            capture.attach_attention(layer.self_attn, self._recorder, self_kind, number)
            if stack is Stack.DECODER:
                capture.attach_attention(layer.encoder_attn, self._recorder, AttentionKind.CROSS, number)

    def forward(self, batch: Batch, request: FeatureRequest) -> Features:
        """One teacher-forced pass; returns exactly what was requested.

        Raises CaptureError if a requested layer did not run.
        """
        with self._recorder.recording(_sites(request)) as seen:
            output = self.model.model(
                **batch.inputs.keywords,
                decoder_input_ids=batch.decoder_input_ids,
                use_cache=False,
            )
            head = self._head(output.last_hidden_state) if request.head else None
            logits = self._logits(output.last_hidden_state) if request.logits else None
            values = dict(seen)
        return Features(
            logits=logits,
            head=head,
            encoder_output=output.encoder_last_hidden_state if request.encoder_output else None,
            # in Stack's order: a set's differs between processes, and ZeRO-2 adds up gradients in the order of the
            # backward pass, which has to be the same on every rank
            embeddings={stack: values[("embedding", stack, 0)] for stack in Stack if stack in request.embeddings},
            hidden={
                (stack, n): values[("hidden", stack, n)] for stack, layers in request.hidden.items() for n in layers
            },
            attention={
                (kind, n): values[("attention", kind, n)]
                for kind, layers in request.attention.items()
                for n in layers
            },
        )

    @property
    def _logits_bias(self) -> Tensor:
        bias = self.model.get_buffer("final_logits_bias")
        return bias.flatten()  # [V]

    def _head(self, decoder_output: Tensor) -> OutputHead:
        bias = self._logits_bias if self._has_logits_bias else None
        return OutputHead(decoder_output, self.model.lm_head.weight, bias, self.family.masked_id(self.model.config))

    def _logits(self, decoder_output: Tensor) -> Tensor:
        logits = self.model.lm_head(decoder_output).add_(self.model.final_logits_bias)  # [B, T, V]
        if self.family.masks_start_logit:
            logits[..., self.model.config.bos_token_id] = masked_logit_value(logits.dtype)
        return logits


def _sites(request: FeatureRequest) -> frozenset[capture.Site]:
    sites: set[capture.Site] = {("embedding", stack, 0) for stack in request.embeddings}
    sites |= {("hidden", stack, n) for stack, layers in request.hidden.items() for n in layers}
    sites |= {("attention", kind, n) for kind, layers in request.attention.items() for n in layers}
    return frozenset(sites)
