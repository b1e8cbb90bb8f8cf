"""Gives the features of any model whose family is known: it knows where the parts are, this module records them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill_engine.arithmetic.products import use_quicker_products
from distill_engine.families.lookup import family_of, start_of
from distill_engine.families.protocol import Family, StackParts
from distill_engine.models import capture
from distill_engine.models.fake_int8 import product_of
from distill_engine.values import AttentionKind, Batch, Encoded, FeatureRequest, Features, OutputHead, Stack


def adapt(model: PreTrainedModel) -> Adapter:
    """The adapter module around a Hugging Face model. Raises ValueError for a model type of no family."""
    return Adapter(model, family_of(model.config))


def masked_logit_value(dtype: torch.dtype) -> float:
    """ParlAI's minus infinity: -1e20, or the lowest finite number where that does not fit (fp16)."""
    return max(-1e20, torch.finfo(dtype).min)


class Adapter(nn.Module):
    """Gives the features of one model.

    Called by both engines once per micro-batch. It is this small because the losses, the student builder and
    the exporter need nothing else of a model: its features, the module itself and its family.
    """

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self._recorder = capture.Recorder()
        self._frozen: list[nn.Module] = []
        capture.use_capturing_attention(model)
        use_quicker_products(model)
        parts = family.parts(model)
        self._encode, self._decode = parts.encode, parts.decode
        self._scale, self._bias_name = parts.scale, parts.bias
        self._parts = [parts]  # in a list: modules must not be registered twice
        for stack, one in parts.stacks.items():
            self._attach_stack(stack, one)
        # asked once: looking at the values waits for the device
        bias = self._logits_bias
        self._has_logits_bias = bias is not None and bool(torch.count_nonzero(bias))
        self._masked_id = family.masked_id(start_of(model.config))

    def _attach_stack(self, stack: Stack, parts: StackParts) -> None:
        self_kind = AttentionKind.ENCODER_SELF if stack is Stack.ENCODER else AttentionKind.DECODER_SELF
        scale = parts.scale
        unscaled = parts.bare or (lambda out: out if scale == 1.0 else out / scale)
        capture.attach_embedding(parts.embedding, self._recorder, stack, unscaled)
        for number, layer in enumerate(parts.layers):
            capture.attach_hidden(layer, self._recorder, stack, number)
        for number, attention in enumerate(parts.self_attention):
            capture.attach_attention(attention, self._recorder, self_kind, number, biased=parts.biased)
        for number, attention in enumerate(parts.cross_attention):
            capture.attach_attention(attention, self._recorder, AttentionKind.CROSS, number)

    def freeze_encoder(self) -> None:
        """Train nothing that the encoder reads, a table that it shares with the decoder included; and drop nothing
        in it, so that it stays what it was copied from."""
        encoder = self.model.get_encoder()
        encoder.requires_grad_(False)
        self._frozen = [encoder.eval()]  # in a list, as above

    def train(self, mode: bool = True) -> Adapter:
        """Dropout on; never in a frozen encoder."""
        super().train(mode)
        for encoder in self._frozen:
            encoder.eval()
        return self

    @torch.no_grad()
    def encoded(self, batch: Batch) -> Batch:
        """The same with what the encoder makes of its inputs, for every model that has this encoder."""
        return replace(batch, inputs=Encoded(self._encode(batch), batch.inputs.attention_mask))

    def forward(self, batch: Batch, request: FeatureRequest) -> Features:
        """One teacher-forced pass; returns exactly what was requested.

        Raises CaptureError if a requested layer did not run.
        """
        with self._recorder.recording(_sites(request)) as seen:
            inputs = batch.inputs
            encoder_output = inputs.states if isinstance(inputs, Encoded) else self._encode(batch)
            decoder_output = self._decode(batch, encoder_output)
            if self._scale != 1.0:
                decoder_output = decoder_output * self._scale
            head = self._head(decoder_output) if request.head else None
            logits = self._logits(decoder_output) if request.logits else None
            values = dict(seen)
        return Features(
            logits=logits,
            head=head,
            encoder_output=encoder_output if request.encoder_output else None,
            # in Stack's order: a set's differs between processes, and ZeRO-2 adds up gradients in the order of the
            # backward pass, which has to be the same on every rank
            embeddings={stack: values[("embedding", stack, 0)] for stack in Stack if stack in request.embeddings},
            hidden={
                (stack, n): values[("hidden", stack, n)] for stack, layers in request.hidden.items() for n in layers
            },
            attention={
                (kind, n): values[("attention", kind, n)] for kind, layers in request.attention.items() for n in layers
            },
        )

    @property
    def every_layer(self) -> FeatureRequest:
        """Outputs of each layer and of the encoder, and logits: what a search for where numbers go wrong looks at."""
        layers = {stack: tuple(range(len(one.layers))) for stack, one in self._parts[0].stacks.items()}
        return FeatureRequest(encoder_output=True, hidden=layers)

    @property
    def _output(self) -> nn.Module:
        return self._parts[0].head

    @property
    def _logits_bias(self) -> Tensor | None:
        return None if self._bias_name is None else self.model.get_buffer(self._bias_name).flatten()  # [V]

    def _head(self, decoder_output: Tensor) -> OutputHead:
        hidden, weight = product_of(self._output, decoder_output)
        bias = self._logits_bias if self._has_logits_bias else None
        return OutputHead(hidden, weight, bias, self._masked_id)

    def _logits(self, decoder_output: Tensor) -> Tensor:
        logits: Tensor = self._output(decoder_output)  # [B, T, V]
        if self._bias_name is not None:
            logits = logits.add_(self.model.get_buffer(self._bias_name))
        if self._masked_id is not None:
            logits[..., self._masked_id] = masked_logit_value(logits.dtype)
        return logits


def _sites(request: FeatureRequest) -> frozenset[capture.Site]:
    sites: set[capture.Site] = {("embedding", stack, 0) for stack in request.embeddings}
    sites |= {("hidden", stack, n) for stack, layers in request.hidden.items() for n in layers}
    sites |= {("attention", kind, n) for kind, layers in request.attention.items() for n in layers}
    return frozenset(sites)
