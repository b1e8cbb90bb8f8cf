"""Builds the student on the CPU, before any engine exists.

teacher_layers  DistilBERT-style: the teacher's widths, its embeddings and mapped layers
random          TinyBERT-style or from scratch: any widths, ParlAI's initial distributions

Every rank builds the same student: the random numbers come from the recipe's seed alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from distill_engine.models.bart_family import Family
from distill_engine.models.loading import Checkpoint
from distill_engine.values import Stack


@dataclass(frozen=True)
class StudentSizes:
    """Sizes of a student; None means the teacher's."""

    encoder_layers: int | None = None
    decoder_layers: int | None = None
    width: int | None = None
    ffn_width: int | None = None
    heads: int | None = None
    positions: int | None = None
    dropout: float | None = None
    attention_dropout: float | None = None

    def config_values(self) -> dict[str, Any]:
        """The sizes that are set, under Hugging Face's configuration names."""
        values = {
            "encoder_layers": self.encoder_layers,
            "decoder_layers": self.decoder_layers,
            "num_hidden_layers": self.encoder_layers,
            "d_model": self.width,
            "encoder_ffn_dim": self.ffn_width,
            "decoder_ffn_dim": self.ffn_width,
            "encoder_attention_heads": self.heads,
            "decoder_attention_heads": self.heads,
            "max_position_embeddings": self.positions,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class TeacherLayers:
    """Copy the teacher: which layer goes where, and whether the norms outside the layers go along.

    ParlAI's `copy_teacher_weights` forgets those norms (they start at 1 and 0); copy_final_norms=False is its way.
    """

    weights: Checkpoint
    layer_maps: Mapping[Stack, Sequence[int]]
    copy_final_norms: bool = True


def student_config(teacher_config: PretrainedConfig, sizes: StudentSizes) -> PretrainedConfig:
    """The teacher's configuration with the student's sizes. Layer drop is off: every mapped layer must run."""
    config = copy.deepcopy(teacher_config)
    for name, value in sizes.config_values().items():
        setattr(config, name, value)
    return _finish(config)


def fresh_config(family: Family, sizes: StudentSizes, vocab_size: int, special_ids: Mapping[str, int]) -> Any:
    """A configuration without a teacher; special_ids holds pad, start and end."""
    config_class: Any = family.config_class
    config = config_class(
        vocab_size=vocab_size,
        pad_token_id=special_ids["pad"],
        bos_token_id=special_ids["start"],
        eos_token_id=special_ids["end"],
        decoder_start_token_id=special_ids["end"] if family.end_before_start else special_ids["start"],
        forced_eos_token_id=special_ids["end"],
        scale_embedding=family.masks_start_logit,  # ParlAI scales embeddings in its generators, not in BART
        activation_function="gelu",
        tie_word_embeddings=True,
        **sizes.config_values(),
    )
    return _finish(config)


def _finish(config: PretrainedConfig) -> PretrainedConfig:
    config.encoder_layerdrop = 0.0
    config.decoder_layerdrop = 0.0
    config.dtype = torch.float32
    return config


def build_student(family: Family, config: PretrainedConfig, init: TeacherLayers | None, seed: int) -> PreTrainedModel:
    """A float32 student on the CPU; `init` None starts from random weights.

    Its embeddings and output are one table, or each its own, as `config` says. Raises WeightsError if the teacher's
    files lack a tensor, ValueError if its shape does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.model_class(config).float()
        initialise_randomly(model, family)
    if init is not None:
        _copy_teacher(model, family, init)
    model.tie_weights()
    if not model.all_tied_weights_keys:
        model.model.shared.requires_grad_(False)  # both stacks and the head have tables of their own; nobody reads it
    return model


@torch.no_grad()
def initialise_randomly(model: PreTrainedModel, family: Family) -> None:
    """ParlAI's initial distributions: embeddings normal of std 1/sqrt(D), attention Xavier normal, FFN Xavier uniform.

    Position tables: sinusoidal for Blenderbot (ParlAI's fixed codes), normal for BART (learned there). Biases are 0,
    as ParlAI's comments intend; its code leaves torch's small random ones.
    """
    width = model.config.d_model
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            fill = nn.init.xavier_normal_ if "attn." in name else nn.init.xavier_uniform_
            fill(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name in _own_tables(model):
        table = model.get_parameter(name)
        nn.init.normal_(table, std=width**-0.5)
        table[model.config.pad_token_id].zero_()
    for stack in Stack:
        table = model.get_parameter(family.position_table(stack))
        if family.extra_position_rows:
            nn.init.normal_(table, std=width**-0.5)
        else:
            table.copy_(sinusoidal_positions(*table.shape))


def _own_tables(model: PreTrainedModel) -> list[str]:
    """Names of the vocabulary's tables that are not another one: `shared` alone where all are tied to it."""
    stacks = [f"model.{stack.value}.embed_tokens.weight" for stack in Stack]
    tables = ("model.shared.weight", *stacks, "lm_head.weight")
    return [name for name in tables if name not in model.all_tied_weights_keys]


def sinusoidal_positions(rows: int, width: int) -> Tensor:
    """[rows, width] position codes as ParlAI makes them: sine in even, cosine in odd columns (Vaswani et al. 2017)."""
    position = torch.arange(rows, dtype=torch.float64)[:, None]
    frequency = 10000.0 ** (-2.0 * torch.arange((width + 1) // 2, dtype=torch.float64) / width)
    angles = position * frequency  # [rows, ceil(width / 2)]
    codes = torch.empty(rows, width, dtype=torch.float64)
    codes[:, 0::2] = angles.sin()
    codes[:, 1::2] = angles.cos()[:, : width // 2]
    return codes.float()


@torch.no_grad()
def _copy_teacher(model: PreTrainedModel, family: Family, init: TeacherLayers) -> None:
    for name, target in model.state_dict().items():
        if name in model.all_tied_weights_keys:  # it is copied under the name that it is tied to
            continue
        if name.startswith(family.final_norms) and not init.copy_final_norms:
            continue
        source_name = _teacher_name(name, family, init.layer_maps)
        _copy_tensor(target, init.weights.read(source_name), name, source_name)


def _copy_tensor(target: Tensor, source: Tensor, name: str, source_name: str) -> None:
    if name.endswith("embed_positions.weight") and source.shape[0] > target.shape[0]:
        source = source[: target.shape[0]]
    if source.shape != target.shape:
        raise ValueError(
            f"student.init is teacher_layers, but {name} is {list(target.shape)} in the student and {source_name} is "
            f"{list(source.shape)} in the teacher. Copied layers need the teacher's widths: leave student.width, "
            "student.ffn_width and student.positions out, or set student.init: random."
        )
    target.copy_(source)


def _teacher_name(name: str, family: Family, layer_maps: Mapping[Stack, Sequence[int]]) -> str:
    for stack in Stack:
        for layer, taught_by in enumerate(layer_maps[stack]):
            prefix = family.layer_prefix(stack, layer)
            if name.startswith(prefix):
                return family.layer_prefix(stack, taught_by) + name.removeprefix(prefix)
    return name
