"""BART: contexts are START ... END, the decoder reads END START before a label, as in ParlAI's `bart` agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens
from distill_engine.families.base import BartLike, around, published
from distill_engine.families.shape import Form

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITION_ROWS = 2  # in front of position 0


class Bart(BartLike):
    """See `protocol.Family`."""

    name = "bart"
    meaning = "BART: summaries, dialogue; the first label position is read after END START"
    decoder_skips = 1
    needs_start = True
    final_norms = ("model.encoder.layernorm_embedding.", "model.decoder.layernorm_embedding.")
    form = Form(position_rows=POSITION_ROWS)
    fresh_values: Mapping[str, Any] = {"activation_function": "gelu", "scale_embedding": False}
    known: Mapping[str, Mapping[str, Any]] = {
        "facebook/bart-large": published(50265, 1024, 4096, 16, 12, 1024),
        "facebook/bart-large-cnn": published(50264, 1024, 4096, 16, 12, 1024),
        "facebook/bart-base": published(50265, 768, 3072, 12, 6, 1024),
    }

    def layout(self, special: SpecialTokens, history_end_token: bool = False) -> SequenceLayout:
        del history_end_token
        assert special.start is not None
        return around(
            special,
            context_prefix=(special.start,),
            context_suffix=(special.end,),
            decoder_prefix=(special.end, special.start),
        )

    def initialise(self, model: PreTrainedModel) -> None:
        from distill_engine.families import parlai_init  # imports torch

        parlai_init.initialise(model, sinusoidal=False)


FAMILY = Bart()
