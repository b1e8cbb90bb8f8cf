"""What a model family is to this engine: everything that the rest asks about a model, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens
from distill_engine.families.shape import Axis, Shape, Sizes
from distill_engine.values import Batch, Stack

if TYPE_CHECKING:  # rules and the launcher ask families for shapes on machines without torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class StackParts:
    """One half of a loaded model.

    embedding  the module whose output is `scale` times the rows of the token table
    outer_scale  what the model multiplies that output with, outside of the module
    bare       what makes of its output the embedding [B, L, D], where no tokens are read
    biased     self-attentions add a position bias to their scores
    """

    embedding: nn.Module
    scale: float
    layers: Sequence[nn.Module]
    self_attention: Sequence[nn.Module]
    cross_attention: Sequence[nn.Module] = ()
    biased: bool = False
    outer_scale: float = 1.0
    bare: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Parts:
    """Where the features of a loaded model are.

    encode  what an encoder makes of its inputs, [B, S, D]
    decode  what a decoder makes of a batch and its encoder's output, teacher-forced, [B, T, D]
    head    the linear map to the vocabulary, of decoder outputs times `scale`
    bias    name of the buffer that is added to the logits, or None
    """

    stacks: Mapping[Stack, StackParts]
    encode: Callable[[Batch], Tensor]
    decode: Callable[[Batch, Tensor], Tensor]
    head: nn.Module
    scale: float = 1.0
    bias: str | None = None


class Family(Protocol):
    """A family of models, by the model_type of its config.json.

    Found by `families.lookup` for rules, plan, preparation, student, both engines and export. It is this small because
    all of them work with shapes, layouts, parts and names. Files of families load without torch; what needs it is
    imported by `parts` and `initialise`. New ones derive from `families.base.BartLike` or fulfil this.

    name             model_type                          meaning       one line for people
    auto_class       transformers' class that loads it   inputs        "tokens" or "audio"
    decoder_skips    decoder positions before the first that predicts
    takes_positions  its number of positions is a size of the model
    needs_start      texts need the tokenizer's start token
    final_norms      prefixes of norms outside the layers
    separable        tied parameters that some files of the family hold apart, whatever config.json says
    prompts          `generate` puts more than a start token before replies, by settings of its own (see `prompt`)
    beside           files of a teacher's folder that go with a student, beside weights, settings and tokenizer
    maps             last part of the name of a layer's linear map (or table of position biases) -> what its rows and
                     columns run over; of all other parameters the last axis is the width, where it depends on a size
    delimiter        between turns of a conversation, where no recipe says it
    known            name of a published model -> its config.json, so that a login node without network can plan
    """

    name: str
    meaning: str
    auto_class: str
    inputs: str
    decoder_skips: int
    takes_positions: bool
    needs_start: bool
    final_norms: tuple[str, ...]
    separable: tuple[str, ...]
    prompts: bool
    beside: tuple[str, ...]
    maps: Mapping[str, tuple[Axis, Axis]]
    delimiter: str
    known: Mapping[str, Mapping[str, Any]]

    def missing(self, config: Mapping[str, Any]) -> list[str]:
        """Keys of a config.json that are no positive whole numbers and have to be."""

    def shape(self, config: Mapping[str, Any]) -> Shape:
        """Of a config.json. Raises KeyError or ValueError where `missing` names something."""

    def config_values(self, sizes: Sizes) -> dict[str, Any]:
        """The sizes that are given, under the configuration's names."""

    def fresh(self, sizes: Sizes, vocabulary: int, special: SpecialTokens) -> dict[str, Any]:
        """A configuration without a teacher."""

    def obstacle(self, shape: Shape) -> str:
        """Why transformers cannot run a model of this shape; empty where it can."""

    def unsettled(self, special: SpecialTokens) -> str:
        """Why texts cannot be laid out with these tokens; empty where they can."""

    def towards(self, special: SpecialTokens, language: int) -> SpecialTokens | None:
        """The same for replies in the language of this token; None where models of this family know no languages."""

    def layout(self, special: SpecialTokens, history_end_token: bool = False) -> SequenceLayout:
        """What stands around contexts and labels."""

    def prompt(self, settings: Mapping[str, Any]) -> tuple[int | None, ...]:
        """What `generate` puts behind the decoder's start by these settings; None for what it would find out."""

    def begins(self, special: SpecialTokens, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Generation settings, by name, that begin replies with these tokens (None: nothing is known of it);
        `settings`: a model's own."""

    def begins_rows(self, prompts: Sequence[Sequence[int] | None], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The same for rows of one batch that begin with these ids behind the decoder's start, of families that prompt;
        None: as `settings` say. Raises ValueError where they cannot be asked for."""

    def fitted(self, settings: Mapping[str, Any], copied: Sequence[int]) -> dict[str, Any]:
        """Changes of a teacher's generation settings for a decoder that has copies of these layers (none: random)."""

    def masked_id(self, start: int | None) -> int | None:
        """The token that is never predicted, of models with this start token."""

    def position_table(self, stack: Stack) -> str | None:
        """Name of a stack's position table, None where that is no parameter."""

    def layer_prefix(self, stack: Stack, layer: int) -> str:
        """What names of all parameters of a layer begin with."""

    def teacher_name(self, parameter: str, maps: Mapping[Stack, Sequence[int]]) -> str:
        """The teacher's tensor that initialises a student's parameter."""

    def parts(self, model: PreTrainedModel) -> Parts:
        """Of a loaded model."""

    def generate(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
        """[B, T] int64: what a model generates, the decoder's start token left out."""

    def initialise(self, model: PreTrainedModel) -> None:
        """Random weights of a new model, which has transformers' own so far."""
