"""T5, Flan-T5, ByT5: unscaled scores with a learnt position bias, no position tables, no biases in linear maps.

The output is scaled by width ** -0.5 where config.json says so (`scale_decoder_outputs`, or tied embeddings). Files of
T5 v1.1 and Flan-T5 have an output table of their own, whatever config.json says of tying after transformers has
written it: `models.loading.Checkpoint` looks at the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distill_engine.data.tokens.layout import SpecialTokens
from distill_engine.families.base import BartLike, given, is_size
from distill_engine.families.protocol import Parts
from distill_engine.families.shape import Axis, Form, Shape, Sizes
from distill_engine.values import Stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BIAS_TABLE = "relative_attention_bias"
HEAD = "lm_head.weight"


class T5(BartLike):
    """See `protocol.Family`."""

    name = "t5"
    meaning = "T5, Flan-T5, ByT5: any text to any text"
    final_norms = ("encoder.final_layer_norm.", "decoder.final_layer_norm.")
    separable = (HEAD,)
    takes_positions = False
    known: Mapping[str, Mapping[str, Any]] = {
        "google/flan-t5-xl": {
            "vocab_size": 32128, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_decoder_layers": 24,
            "num_heads": 32, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
        },
    }  # fmt: skip
    feed_forward = "relu"
    form = Form(biases=False, norm=1, position_rows=None, bias_tables="first")
    maps: Mapping[str, tuple[Axis, Axis]] = {
        "q": (Axis.QUERY, Axis.WIDTH), "k": (Axis.KEY, Axis.WIDTH), "v": (Axis.VALUE, Axis.WIDTH),
        "o": (Axis.WIDTH, Axis.VALUE), "wi": (Axis.NEURON, Axis.WIDTH), "wi_0": (Axis.NEURON, Axis.WIDTH),
        "wi_1": (Axis.NEURON, Axis.WIDTH), "wo": (Axis.WIDTH, Axis.NEURON), BIAS_TABLE: (Axis.BUCKET, Axis.HEAD),
    }  # fmt: skip

    def missing(self, config: Mapping[str, Any]) -> list[str]:
        needed = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
        return [key for key in needed if not is_size(config.get(key))]

    def shape(self, config: Mapping[str, Any]) -> Shape:
        layers, heads, ffn = (int(config[key]) for key in ("num_layers", "num_heads", "d_ff"))
        vocabulary = int(config["vocab_size"])
        gated = str(config.get("feed_forward_proj", self.feed_forward)).startswith("gated")
        return Shape(
            family=self.name,
            vocab=vocabulary,
            width=int(config["d_model"]),
            encoder_layers=layers,
            decoder_layers=int(config.get("num_decoder_layers") or layers),
            encoder_ffn=ffn,
            decoder_ffn=ffn,
            encoder_heads=heads,
            decoder_heads=heads,
            positions=None,
            token_tables=(vocabulary,) * (2 if self.own_head(config) else 1),
            form=replace(self.form, gated=gated),
            head_size=int(config["d_kv"]),
            buckets=int(config.get("relative_attention_num_buckets", 32)),
        )

    def own_head(self, config: Mapping[str, Any]) -> bool:
        """Whether a published file of this configuration has an output table of its own."""
        return config.get("tie_word_embeddings") is False or config.get("scale_decoder_outputs") is False

    def config_values(self, sizes: Sizes) -> dict[str, Any]:
        values = {
            "num_layers": sizes.encoder_layers,
            "num_decoder_layers": sizes.decoder_layers,
            "d_model": sizes.width,
            "d_ff": sizes.ffn_width,
            "num_heads": sizes.heads,
            "dropout_rate": sizes.dropout if sizes.dropout is not None else sizes.attention_dropout,
        }
        return given(values)

    def fresh(self, sizes: Sizes, vocabulary: int, special: SpecialTokens) -> dict[str, Any]:
        return {
            "vocab_size": vocabulary,
            "pad_token_id": special.pad,
            "eos_token_id": special.end,
            "decoder_start_token_id": self.layout(special).decoder_prefix[0],
            "feed_forward_proj": self.feed_forward,
            "d_kv": (sizes.width or 0) // (sizes.heads or 1),
            **self.config_values(sizes),
        }

    def obstacle(self, shape: Shape) -> str:
        if shape.decoder_layers <= shape.encoder_layers:
            return ""
        most = shape.encoder_layers
        return f"its encoder has {most} layers, and transformers' cache fails for deeper decoders: take {most} or fewer"

    def position_table(self, stack: Stack) -> str | None:
        del stack
        return None

    def layer_prefix(self, stack: Stack, layer: int) -> str:
        return f"{stack.value}.block.{layer}."

    def teacher_name(self, parameter: str, maps: Mapping[Stack, Sequence[int]]) -> str:
        if BIAS_TABLE in parameter and self.form.bias_tables == "first":
            return parameter  # the first layer's serves all
        return super().teacher_name(parameter, maps)

    def parts(self, model: PreTrainedModel) -> Parts:
        from distill_engine.families import t5_modules  # imports torch

        return t5_modules.parts(model)


FAMILY = T5()
