"""What the families that descend from BART's code in transformers have in common: names of sizes and of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens
from distill_engine.families.protocol import Parts
from distill_engine.families.shape import Axis, Form, Shape, Sizes
from distill_engine.values import Stack

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class BartLike:
    """A family whose configuration and parameters are named as BART's; see `protocol.Family`.

    Its decoder reads the configured start token, and after it the token that generation forces to be the first.
    """

    name: str
    meaning: str
    auto_class = "AutoModelForSeq2SeqLM"
    inputs = "tokens"
    decoder_skips = 0
    takes_positions = True
    needs_start = False
    final_norms: tuple[str, ...] = ("model.encoder.layer_norm.", "model.decoder.layer_norm.")
    separable: tuple[str, ...] = ()
    prompts = False
    beside: tuple[str, ...] = ()
    delimiter = "\n"
    known: Mapping[str, Mapping[str, Any]] = {}
    form = Form()
    maps: Mapping[str, tuple[Axis, Axis]] = {
        "q_proj": (Axis.QUERY, Axis.WIDTH), "k_proj": (Axis.KEY, Axis.WIDTH), "v_proj": (Axis.VALUE, Axis.WIDTH),
        "out_proj": (Axis.WIDTH, Axis.VALUE), "fc1": (Axis.NEURON, Axis.WIDTH), "fc2": (Axis.WIDTH, Axis.NEURON),
    }  # fmt: skip
    # what tokens.special has no say in, for models without a teacher
    fresh_values: Mapping[str, Any] = {}

    def missing(self, config: Mapping[str, Any]) -> list[str]:
        needed = ["vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads"]
        needed += ["decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings"]
        return [key for key in needed if not is_size(config.get(key))]

    def shape(self, config: Mapping[str, Any]) -> Shape:
        vocabulary = int(config["vocab_size"])
        return Shape(
            family=self.name,
            vocab=vocabulary,
            width=int(config["d_model"]),
            encoder_layers=int(config["encoder_layers"]),
            decoder_layers=int(config["decoder_layers"]),
            encoder_ffn=int(config["encoder_ffn_dim"]),
            decoder_ffn=int(config["decoder_ffn_dim"]),
            encoder_heads=int(config["encoder_attention_heads"]),
            decoder_heads=int(config["decoder_attention_heads"]),
            positions=int(config["max_position_embeddings"]),
            token_tables=(vocabulary,) * (4 if config.get("tie_word_embeddings") is False else 1),
            form=self.form,
        )

    def config_values(self, sizes: Sizes) -> dict[str, Any]:
        values = {
            "encoder_layers": sizes.encoder_layers,
            "decoder_layers": sizes.decoder_layers,
            "num_hidden_layers": sizes.encoder_layers,
            "d_model": sizes.width,
            "encoder_ffn_dim": sizes.ffn_width,
            "decoder_ffn_dim": sizes.ffn_width,
            "encoder_attention_heads": sizes.heads,
            "decoder_attention_heads": sizes.heads,
            "max_position_embeddings": sizes.positions,
            "dropout": sizes.dropout,
            "attention_dropout": sizes.attention_dropout,
        }
        return given(values)

    def fresh(self, sizes: Sizes, vocabulary: int, special: SpecialTokens) -> dict[str, Any]:
        return {
            "vocab_size": vocabulary,
            "pad_token_id": special.pad,
            "bos_token_id": special.start,
            "eos_token_id": special.end,
            "decoder_start_token_id": self.layout(special).decoder_prefix[0],
            "forced_eos_token_id": special.end,
            "tie_word_embeddings": True,
            **self.fresh_values,
            **self.config_values(sizes),
        }

    def obstacle(self, shape: Shape) -> str:
        del shape
        return ""

    def unsettled(self, special: SpecialTokens) -> str:
        del special
        return ""

    def towards(self, special: SpecialTokens, language: int) -> SpecialTokens | None:
        del special, language
        return None

    def layout(self, special: SpecialTokens, history_end_token: bool = False) -> SequenceLayout:
        del history_end_token  # contexts end with END in any case
        return around(special, context_suffix=(special.end,), decoder_prefix=started(special))

    def prompt(self, settings: Mapping[str, Any]) -> tuple[int | None, ...]:
        del settings
        return ()

    def begins(self, special: SpecialTokens, settings: Mapping[str, Any]) -> dict[str, Any]:
        del settings
        return {"forced_bos_token_id": special.forced, "decoder_start_token_id": special.decoder_start}

    def begins_rows(self, prompts: Sequence[Sequence[int] | None], settings: Mapping[str, Any]) -> dict[str, Any]:
        del settings
        raise ValueError(f"rows begin with {list(prompts)}, but {self.name} is told one beginning of all replies")

    def fitted(self, settings: Mapping[str, Any], copied: Sequence[int]) -> dict[str, Any]:
        del settings, copied
        return {}

    def masked_id(self, start: int | None) -> int | None:
        del start
        return None

    def position_table(self, stack: Stack) -> str | None:
        return f"model.{stack.value}.embed_positions.weight"

    def layer_prefix(self, stack: Stack, layer: int) -> str:
        return f"model.{stack.value}.layers.{layer}."

    def teacher_name(self, parameter: str, maps: Mapping[Stack, Sequence[int]]) -> str:
        for stack in Stack:
            for layer, teacher_layer in enumerate(maps[stack]):
                prefix = self.layer_prefix(stack, layer)
                if parameter.startswith(prefix):
                    return self.layer_prefix(stack, teacher_layer) + parameter.removeprefix(prefix)
        return parameter

    def parts(self, model: PreTrainedModel) -> Parts:
        from distill_engine.families import bart_modules  # imports torch

        return bart_modules.parts(model)

    def generate(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
        whole: Any = model
        ids: Tensor = whole.generate(**inputs, **settings)
        return ids[:, 1:]

    def initialise(self, model: PreTrainedModel) -> None:
        del model


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a recipe says; None leaves the teacher's."""
    return {name: value for name, value in values.items() if value is not None}


def is_size(value: object) -> bool:
    """Whether this is a positive whole number."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def published(vocab: int, width: int, ffn: int, heads: int, layers: int, positions: int) -> dict[str, int]:
    """The sizes in a published config.json; both stacks have as many layers."""
    return {
        "vocab_size": vocab,
        "d_model": width,
        "encoder_ffn_dim": ffn,
        "decoder_ffn_dim": ffn,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "max_position_embeddings": positions,
    }


class Multilingual(BartLike):
    """Families whose texts have a language token: before or after contexts, and in front of replies."""

    decoder_skips = 1  # the language, after the start that replies of any language have

    def unsettled(self, special: SpecialTokens) -> str:
        if special.forced is not None or not self._starts_as_any(special):
            return ""
        return "whose generation settings have no forced_bos_token_id: the language that it is to write is not said"

    def towards(self, special: SpecialTokens, language: int) -> SpecialTokens:
        """Tokens that begin replies with a language: forced after the start of any, or itself the start."""
        if self._starts_as_any(special):
            return replace(special, forced=language)
        return replace(special, decoder_start=language, forced=None)

    def layout(self, special: SpecialTokens, history_end_token: bool = False) -> SequenceLayout:
        """Context LANGUAGE ... END, decoder input END LANGUAGE label."""
        del history_end_token
        language = () if special.source is None else (special.source,)
        begun = started(special, default=special.end)
        return around(special, context_prefix=language, context_suffix=(special.end,), decoder_prefix=begun)

    @staticmethod
    def _starts_as_any(special: SpecialTokens) -> bool:
        return special.decoder_start in (None, special.end)


def started(special: SpecialTokens, default: int | None = None) -> tuple[int, ...]:
    """The decoder's start token (where none is configured `default`, or PAD) and the one that is forced after it."""
    start = special.decoder_start
    if start is None:
        start = special.pad if default is None else default
    return (start,) if special.forced is None else (start, special.forced)


def around(
    special: SpecialTokens,
    *,
    decoder_prefix: tuple[int, ...],
    context_prefix: tuple[int, ...] = (),
    context_suffix: tuple[int, ...] = (),
) -> SequenceLayout:
    """A layout; all of the decoder's prefix but its last token predicts nothing."""
    return SequenceLayout(
        pad_id=special.pad,
        start_id=special.start,
        end_id=special.end,
        context_prefix=context_prefix,
        context_suffix=context_suffix,
        decoder_prefix=decoder_prefix,
        label_pad_prefix=len(decoder_prefix) - 1,
    )
