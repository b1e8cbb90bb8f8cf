"""ParlAI's initial distributions, for the families that its agents have; needs torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill_engine.values import Stack


@torch.no_grad()
def initialise(model: PreTrainedModel, *, sinusoidal: bool) -> None:
    """Embeddings normal of std 1/sqrt(D), attention Xavier normal, FFN Xavier uniform.

    Position tables: sinusoidal codes (fixed in ParlAI's generators), or normal (learned, BART). Biases are 0, as
    ParlAI's comments intend; its code leaves torch's small random ones.
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
        table = model.get_parameter(f"model.{stack.value}.embed_positions.weight")
        if sinusoidal:
            table.copy_(sinusoidal_positions(*table.shape))
        else:
            nn.init.normal_(table, std=width**-0.5)


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
