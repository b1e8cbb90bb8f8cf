"""One minus the cosine of two hidden vectors per token.

    term = sum over unmasked tokens of 1 - s t / (|s| |t|)        d / ds = (cos s / |s| - t / |t|) / |s|

Float32 whatever the inputs are; nothing is kept but the inputs and three numbers per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from distill_engine.values import Projected

SHORTEST = 1e-8  # of a vector that has a direction


def cosine_distance_sum(student: Tensor | Projected, teacher: Tensor | Projected, mask: Tensor) -> Tensor:
    """Summed over unmasked tokens, [] float32; [B, L, D] both, mask [B, L] bool. What is masked may hold inf or nan."""
    assert isinstance(teacher, Tensor), "a teacher's vectors are never Projected"
    if isinstance(student, Projected):  # the weight's gradient must not see what is masked either
        student = linear(student.states.masked_fill(~mask[..., None], 0.0), student.weight, student.bias)
    total: Tensor = _CosineDistance.apply(student, teacher, mask)
    return total


class _CosineDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        own, other = student.float(), teacher.float()
        lengths = own.norm(dim=-1).clamp(min=SHORTEST), other.norm(dim=-1).clamp(min=SHORTEST)
        cosine = (own * other).sum(dim=-1) / (lengths[0] * lengths[1])
        ctx.save_for_backward(student, teacher, mask, cosine, *lengths)
        return (1.0 - cosine).masked_fill(~mask, 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        student, teacher, mask, cosine, own_length, other_length = ctx.saved_tensors
        gradient = student.float() * (cosine / own_length.square())[..., None]
        gradient -= teacher.float() * (1.0 / (own_length * other_length))[..., None]
        return (gradient * upstream).masked_fill(~mask[..., None], 0.0).to(student.dtype), None, None
