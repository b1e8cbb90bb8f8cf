"""The names of tensors in ParlAI's and in Hugging Face's models: renaming in both directions, no change of value.

ParlAI's `norm_embeddings` is Blenderbot's norm after the stack and BART's norm of the embeddings. BART's position
tables have two rows in front that no position uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PROJECTIONS = ("encoder_proj_layer.", "embedding_proj_layers.", "hidden_proj_layers.")
START_TENSOR = "START"
EMBEDDING = "embeddings.weight"
TIED_EMBEDDINGS = ("encoder.embeddings.weight", "decoder.embeddings.weight")
SHARED = "model.shared.weight"
LOGITS_BIAS = "final_logits_bias"
BART_POSITION_ROWS = 2

# Inside a layer, ParlAI -> Hugging Face.
_LINEAR = {"q_lin": "q_proj", "k_lin": "k_proj", "v_lin": "v_proj", "out_lin": "out_proj"}
_ENCODER_LAYER = {
    "attention": "self_attn",
    "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm",
    "ffn.lin1": "fc1",
    "ffn.lin2": "fc2",
}
_DECODER_LAYER = {
    "self_attention": "self_attn",
    "encoder_attention": "encoder_attn",
    "norm1": "self_attn_layer_norm",
    "norm2": "encoder_attn_layer_norm",
    "norm3": "final_layer_norm",
    "ffn.lin1": "fc1",
    "ffn.lin2": "fc2",
}
_LAYERS = {"encoder": _ENCODER_LAYER, "decoder": _DECODER_LAYER}
_NORM = {"blenderbot": "layer_norm", "bart": "layernorm_embedding"}
_LAYER_NAME = re.compile(r"(encoder|decoder)\.(layers\.\d+)\.(.+)\.(weight|bias)")


def their_name(name: str, family: str) -> str | None:
    """Hugging Face's name of a ParlAI tensor; None where there is none."""
    if name in (EMBEDDING, *TIED_EMBEDDINGS):
        return SHARED
    for stack in _LAYERS:
        if name == f"{stack}.position_embeddings.weight":
            return f"model.{stack}.embed_positions.weight"
        if name in (f"{stack}.norm_embeddings.weight", f"{stack}.norm_embeddings.bias"):
            return f"model.{stack}.{_NORM[family]}.{name.rsplit('.', 1)[1]}"
    found = _LAYER_NAME.fullmatch(name)
    if found is None:
        return None
    stack, layer, part, kind = found.groups()
    inner = _inner_name(part, _LAYERS[stack])
    return None if inner is None else f"model.{stack}.{layer}.{inner}.{kind}"


def _inner_name(part: str, table: Mapping[str, str]) -> str | None:
    if part in table:
        return table[part] if "attention" not in part else None
    module, _, linear = part.partition(".")
    return f"{table[module]}.{_LINEAR[linear]}" if module in table and linear in _LINEAR else None


def parlai_names(layers: Mapping[str, int]) -> list[str]:
    """All tensors of a ParlAI model with so many `encoder` and `decoder` layers, in ParlAI's order."""
    names = [EMBEDDING]
    for stack, table in _LAYERS.items():
        ends = [f"{stack}.embeddings.weight", f"{stack}.position_embeddings.weight"]
        norms = [f"{stack}.norm_embeddings.{kind}" for kind in ("weight", "bias")]
        names += [*ends, *norms]
        for layer in range(layers[stack]):
            modules = [linear for part in table for linear in _parts(part)]
            names += [f"{stack}.layers.{layer}.{part}.{kind}" for part in modules for kind in ("weight", "bias")]
    return names


def _parts(part: str) -> list[str]:
    return [f"{part}.{linear}" for linear in _LINEAR] if "attention" in part else [part]


def position_rows_added(name: str, tensor: Tensor, family: str) -> Tensor:
    """A ParlAI tensor as Hugging Face stores it: BART's unused position rows in front are zeros."""
    if family == "bart" and name.endswith("position_embeddings.weight"):
        return torch.cat([tensor.new_zeros(BART_POSITION_ROWS, tensor.shape[1]), tensor])
    return tensor


def position_rows_removed(name: str, tensor: Tensor, family: str) -> Tensor:
    """The inverse of `position_rows_added`."""
    if family == "bart" and name.endswith("position_embeddings.weight"):
        return tensor[BART_POSITION_ROWS:].clone()
    return tensor
