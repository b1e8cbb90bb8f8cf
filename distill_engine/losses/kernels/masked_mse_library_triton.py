"""Projection and masked squared error with the library's products; formulas and arguments as in masked_mse_triton.

    forward    p = s W^T in float32; one elementwise kernel leaves a partial sum per tile and writes G over p
    backward   f G in the student's dtype; then dstudent = (f G) W, dW = (f G)^T student, db = f (column sums of G)

G waits for the upstream factor in float32: a loss scale still to come finds what fp16 would have lost.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_engine.losses.kernels.half_products import product
from distill_engine.losses.kernels.masked_mse import kept_rows
from distill_engine.losses.kernels.masked_mse_launches_triton import PLAIN_COLUMNS, PLAIN_ROWS, launch_plain, pairs_of


class LibraryErrors(torch.autograd.Function):
    """[pairs] sums; keeps references to its inputs, and G of each pair."""

    @staticmethod
    def forward(ctx: Any, clamp: float | None, mask: Tensor, *tensors: Tensor | None) -> Tensor:
        keep = kept_rows(mask)
        learns = any(ctx.needs_input_grad)
        with torch.cuda.device_of(mask):
            pairs = pairs_of(keep, tensors)
            tokens, width = pairs[0].teacher.shape
            grid = triton.cdiv(tokens, PLAIN_ROWS), triton.cdiv(width, PLAIN_COLUMNS)
            partial = torch.empty((len(pairs), *grid), dtype=torch.float32, device=mask.device)
            slopes = []
            for inputs, own in zip(pairs, partial, strict=True):
                assert inputs.weight is not None
                projected = product(inputs.student, inputs.weight.t())
                slope = projected if learns else None
                launch_plain(grid, inputs._replace(student=projected), clamp, partial=own, slope=slope)
                slopes += [projected] * learns
        ctx.save_for_backward(keep, *slopes, *tensors)
        return partial.flatten(1).sum(dim=1) / width

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        keep, *saved = ctx.saved_tensors
        count = len(upstream)
        slopes, tensors = saved[:count], saved[count:]
        found: list[Tensor | None] = []
        with torch.cuda.device_of(keep):
            factors = upstream.float() * (2.0 / tensors[3].shape[-1])
            for number, (inputs, slope) in enumerate(zip(pairs_of(keep, tensors), slopes, strict=True)):
                asked = ctx.needs_input_grad[2 + 4 * number :][:3]
                student, weight, bias = tensors[4 * number : 4 * number + 3]
                of_bias = (slope.sum(dim=0) * factors[number]).to(bias.dtype) if asked[2] else None
                scaled = torch.mul(slope, factors[number], out=torch.empty_like(slope, dtype=weight.dtype))
                of_student = (scaled @ weight).view(student.shape) if asked[0] else None
                # a masked token's slope is 0, but 0 times its inf or nan would not be
                of_weight = scaled.t() @ inputs.student.masked_fill(keep[:, None] == 0, 0.0) if asked[1] else None
                found += [of_student, of_weight, of_bias, None]
        return None, None, *found
