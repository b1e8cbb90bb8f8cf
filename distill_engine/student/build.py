"""Builds the student on the CPU, before any engine exists.

teacher_layers  DistilBERT-style: the teacher's widths, its embeddings and mapped layers
teacher_width   any smaller widths, built as random; assembly/narrowing.py then gives it the teacher's values
random          TinyBERT-style or from scratch: any widths, the family's initial distributions

Every rank builds the same student: the random numbers come from the recipe's seed alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from distill_engine.data.tokens.layout import SpecialTokens
from distill_engine.families.lookup import family_of
from distill_engine.families.protocol import Family
from distill_engine.families.shape import Sizes
from distill_engine.models.classes import model_class, untie
from distill_engine.models.loading import Checkpoint
from distill_engine.values import Stack


@dataclass(frozen=True)
class TeacherLayers:
    """Copy the teacher: which layer goes where, and whether the norms outside the layers go along.

    ParlAI's `copy_teacher_weights` forgets those norms (they start at 1 and 0); copy_final_norms=False is its way.
    """

    weights: Checkpoint
    layer_maps: Mapping[Stack, Sequence[int]]
    copy_final_norms: bool = True


def student_config(teacher_config: PretrainedConfig, sizes: Sizes) -> PretrainedConfig:
    """The teacher's configuration with the student's sizes. Layer drop is off: every mapped layer must run."""
    config = copy.deepcopy(teacher_config)
    for name, value in family_of(config).config_values(sizes).items():
        setattr(config, name, value)
    return _finish(config)


def fresh_config(family: Family, sizes: Sizes, vocabulary: int, special: SpecialTokens) -> PretrainedConfig:
    """A configuration without a teacher."""
    config: PretrainedConfig = AutoConfig.for_model(family.name, **family.fresh(sizes, vocabulary, special))
    return _finish(config)


def _finish(config: PretrainedConfig) -> PretrainedConfig:
    for name in ("encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    config.dtype = torch.float32
    return config


def build_student(
    family: Family, config: PretrainedConfig, init: TeacherLayers | None, seed: int, *, own_head: bool = False
) -> PreTrainedModel:
    """A float32 student on the CPU; `init` None starts from random weights.

    Its embeddings and output are one table, or each its own, as `config` says; `own_head`: the output in any case
    (where a family's files say it and not its config.json).

    Raises WeightsError if the teacher's files lack a tensor, ValueError if its shape does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)(config).float()
        if own_head:
            untie(model, family.separable)
        family.initialise(model)
    if init is not None:
        _copy_teacher(model, family, init)
    model.tie_weights(recompute_mapping=False)
    if not model.all_tied_weights_keys and hasattr(model.model, "shared"):
        model.model.shared.requires_grad_(False)  # both stacks and the head have tables of their own; nobody reads it
    return model


@torch.no_grad()
def _copy_teacher(model: PreTrainedModel, family: Family, init: TeacherLayers) -> None:
    for name, target in model.state_dict().items():
        if name in model.all_tied_weights_keys:  # it is copied under the name that it is tied to
            continue
        if name.startswith(family.final_norms) and not init.copy_final_norms:
            continue
        if not init.weights.holds(name):  # it is computed in both models
            continue
        source_name = family.teacher_name(name, init.layer_maps)
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
