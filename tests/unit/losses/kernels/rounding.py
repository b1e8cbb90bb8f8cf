"""How far a correct product of matrices may be off, by its depth, and a tensor core's arithmetic in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STEP = 16  # products that a tensor core adds up at once
BITS = 24  # of a float32's significand


def product_error(dtype: torch.dtype, depth: int) -> float:
    """Allowed error of a product of this depth, as a part of its size.

    Half precision: a tensor core cuts the sum off after each step, always towards 0, so errors add up: at most one
    unit in the last place per step. Float32 rounds to the nearest, and errors walk at random.
    """
    return 2.0**-BITS * depth**0.5 if dtype == torch.float32 else 2.0 ** (1 - BITS) * depth / STEP


def cut_off(values: Tensor, bits: int = BITS) -> Tensor:
    """Float64 values with so many bits of significand, the rest cut off."""
    significand, exponent = torch.frexp(values)
    return torch.ldexp((significand * 2.0**bits).trunc(), exponent - bits)


def truncated_product(left: Tensor, right: Tensor, bits: int = BITS, left_out: int = 0) -> Tensor:
    """[..., n, depth] @ [..., depth, m] as a tensor core does it, float32.

    bits, left_out  a wrong kernel: a sum of fewer bits, or without the last so many products
    """
    left, right = left.detach().double(), right.detach().double()
    total = left.new_zeros(*left.shape[:-1], right.shape[-1])
    for first in range(0, left.shape[-1] - left_out, STEP):
        part = slice(first, first + STEP)
        total = cut_off(total + left[..., part] @ right[..., part, :], bits)
    return total.float()


class TruncatedProduct(torch.autograd.Function):
    """The same with gradients from such products; the upstream gradient is rounded to the factors' dtype first."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, faults: dict[str, int]) -> Tensor:
        ctx.save_for_backward(left, right)
        return truncated_product(left, right, **faults)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        left, right = ctx.saved_tensors
        rounded = gradient.to(left.dtype)
        of_left, of_right = truncated_product(rounded, right.mT), truncated_product(left.mT, rounded)
        return of_left.to(left.dtype), of_right.to(right.dtype), None
