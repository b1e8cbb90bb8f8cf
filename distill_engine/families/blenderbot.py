"""Blenderbot, which is ParlAI's `transformer/generator`: START is never predicted, contexts are bare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens
from distill_engine.families.base import BartLike, around
from distill_engine.families.shape import Form

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _published(width: int, ffn: int, decoder_layers: int) -> dict[str, int]:
    return {
        "vocab_size": 8008,
        "d_model": width,
        "encoder_ffn_dim": ffn,
        "decoder_ffn_dim": ffn,
        "encoder_attention_heads": 32,
        "decoder_attention_heads": 32,
        "encoder_layers": 2,
        "decoder_layers": decoder_layers,
        "max_position_embeddings": 128,
    }


class Blenderbot(BartLike):
    """See `protocol.Family`."""

    name = "blenderbot"
    meaning = "Blenderbot (ParlAI's transformer/generator): dialogue; START is never predicted"
    needs_start = True
    delimiter = "  "  # of the published models
    form = Form(scaled_embeddings=True)
    sinusoidal = True  # ParlAI's codes at the start, else learnt ones
    # ParlAI scales embeddings in its generators, not in BART
    fresh_values: Mapping[str, Any] = {"activation_function": "gelu", "scale_embedding": True}
    known: Mapping[str, Mapping[str, Any]] = {
        "facebook/blenderbot-3B": _published(2560, 10240, 24),
        "facebook/blenderbot-1B-distill": _published(2560, 10240, 12),
        "facebook/blenderbot-400M-distill": _published(1280, 5120, 12),
    }

    def layout(self, special: SpecialTokens, history_end_token: bool = False) -> SequenceLayout:
        assert special.start is not None
        suffix = (special.end,) if history_end_token else ()
        return around(special, context_suffix=suffix, decoder_prefix=(special.start,))

    def masked_id(self, start: int | None) -> int | None:
        return start

    def initialise(self, model: PreTrainedModel) -> None:
        from distill_engine.families import parlai_init  # imports torch

        parlai_init.initialise(model, sinusoidal=self.sinusoidal)


FAMILY = Blenderbot()
