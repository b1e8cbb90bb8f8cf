"""Projection and masked squared error together, a few tokens at a time: the path for machines without Triton.

    p    = student W^T + b                                     W None: p = student
    term = sum over unmasked tokens of mean over D of clamp((p - t)^2, max)

With G = 1/2 dterm/dp * D, which is p - t where the token counts and the square lies below the clamp, else 0, and
f = 2 / D times the upstream factor:

    dstudent = f G W          dW = f G^T student          db = f (sum of G over tokens)

Neither p nor p - t ever exists for more than 192 tokens (on a GPU: 4096). All of it is float32,
whatever the inputs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_engine.arithmetic.products import add_product_, product
from distill_engine.losses.kernels.masked_mse import squared_sum_and_slope_, zero_unless_

# Tokens per chunk. W is read once per chunk: measured at [4096, 1024] x 1024, 192 tokens take as long as 512 and 128
# a tenth longer. Without W nothing but the call itself speaks against small chunks.
_TOKENS, _PLAIN_TOKENS = 192, 64
_GPU_TOKENS = 4096  # launches are what costs there

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def projected_mse_sum(
    student: Tensor, weight: Tensor | None, bias: Tensor | None, teacher: Tensor, mask: Tensor, clamp: float | None
) -> Tensor:
    """Sum over unmasked tokens of the mean squared difference between the projected student and the teacher.

    student   [B, L, Ds], any float dtype
    weight    [D, Ds], or None where Ds == D
    bias      [D] or None
    teacher   [B, L, D], any float dtype; gets no gradient
    mask      [B, L] bool, True where a token counts; elsewhere student and teacher may hold inf or nan
    clamp     largest squared difference of one element, or None; a clamped element has derivative 0
    returns   [] float32; gradients reach student, weight and bias, those that ask for them

    Raises ValueError where the shapes do not fit.
    """
    check_projection(student, weight, bias, teacher, mask)
    if weight is None:
        total: Tensor = _PlainError.apply(student, teacher, mask, clamp)
    else:
        total = _ProjectedError.apply(student, weight, bias, teacher, mask, clamp, torch.is_grad_enabled())
    return total


def check_projection(
    student: Tensor, weight: Tensor | None, bias: Tensor | None, teacher: Tensor, mask: Tensor
) -> None:
    """Raise ValueError unless the shapes are those of `projected_mse_sum` and the mask is bool."""
    width = student.shape[-1:] if weight is None else weight.shape[:1]
    fits = (
        student.shape[:-1] == teacher.shape[:-1] == mask.shape
        and teacher.shape[-1:] == width
        and (weight is None or weight.shape[1:] == student.shape[-1:])
        and (bias is None or (weight is not None and bias.shape == width))
    )
    if not fits:
        shapes = ", ".join(
            f"{name} {None if tensor is None else list(tensor.shape)}"
            for name, tensor in zip(
                ("student", "weight", "bias", "teacher", "mask"), (student, weight, bias, teacher, mask), strict=True
            )
        )
        raise ValueError(
            f"masked squared error: shapes do not fit: {shapes}. Expected [B, L, Ds], [D, Ds] or None, [D] or None "
            "(without a weight no bias), [B, L, D], [B, L]. Project the student to the teacher's width."
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"masked squared error: the mask is {mask.dtype}; it must be bool, True where a token counts.")


# ---- without a projection ----------------------------------------------------------------------------------------


class _PlainError(torch.autograd.Function):
    """Keeps references to its inputs only: subtracting a second time costs little, storing the difference much."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor, clamp: float | None) -> Tensor:
        ctx.save_for_backward(student, teacher, mask)
        ctx.clamp = clamp
        sums = []
        for s, t, keep in _chunks(_at_once(_PLAIN_TOKENS, student.device), student, teacher, mask):
            squared = zero_unless_(s.float() - t.float(), keep).square_()
            sums.append((squared if clamp is None else squared.clamp_(max=clamp)).sum())
        return _total(sums, student) / teacher.shape[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        student, teacher, mask = ctx.saved_tensors
        factor = gradient * (2.0 / teacher.shape[-1])
        result = torch.empty(student.shape, dtype=student.dtype, device=student.device)
        for s, t, keep, out in _chunks(_at_once(_PLAIN_TOKENS, student.device), student, teacher, mask, result):
            _, slope = squared_sum_and_slope_(s.float() - t.float(), keep, ctx.clamp)
            torch.mul(slope, factor, out=out)
        return result, None, None, None


# ---- with a projection -------------------------------------------------------------------------------------------


class _ProjectedError(torch.autograd.Function):
    """Forms the gradients in the forward pass and scales them in the backward pass.

    Recomputing p there would be a fourth product besides the three, and the products are nearly all of the time on
    a CPU. What is held in between is float32, so an upstream factor (loss scale) still finds the small gradients, and
    has the size of the results; for a student narrower than the teacher that is less than the difference itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Tensor,
        mask: Tensor,
        clamp: float | None,
        differentiate: bool,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3] if differentiate else (False, False, False)
        total, ctx.gradients = _sum_and_gradients(student, weight, bias, teacher, mask, clamp, wanted)
        ctx.save_for_backward(student, weight, bias, teacher, mask)
        ctx.clamp = clamp
        return total / teacher.shape[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, weight, bias, teacher, mask = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second backward pass over a retained graph: the first one used them up in place
            wanted = ctx.needs_input_grad[:3]
            _, gradients = _sum_and_gradients(student, weight, bias, teacher, mask, ctx.clamp, wanted)
        factor = upstream * (2.0 / teacher.shape[-1])
        of_student, of_weight, of_bias = (
            None if g is None else g.mul_(factor).to(of.dtype)
            for g, of in zip(gradients, (student, weight, bias), strict=True)
        )
        return of_student, of_weight, of_bias, None, None, None, None


def _sum_and_gradients(
    student: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: Tensor,
    mask: Tensor,
    clamp: float | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, _Gradients]:
    """Sum of squares, [], and G W, G^T student, sum of G in float32, each None unless wanted.

    A masked token's row is set to zero before it meets W: 0 * nan in G^T student would be nan.
    """
    weight = weight.float()
    of_student = torch.empty(student.shape, dtype=torch.float32, device=student.device) if wanted[0] else None
    of_weight = torch.zeros_like(weight) if wanted[1] else None
    of_bias = weight.new_zeros(weight.shape[0]) if wanted[2] else None
    results = (student if of_student is None else of_student,)  # the student only fills the place
    size = _at_once(_TOKENS, student.device)
    rows = min(size, mask.numel())
    buffers = [weight.new_empty(rows, width) for width in reversed(weight.shape)]  # fresh ones would cost 10 % time
    sums = []
    for s, t, keep, out in _chunks(size, student, teacher, mask, *results):
        clean, difference = (buffer[: len(s)] for buffer in buffers)
        zero_unless_(clean.copy_(s), keep)
        product(clean, weight.T, out=difference)
        if bias is not None:
            difference.add_(bias)
        total, slope = squared_sum_and_slope_(difference.sub_(t), keep, clamp)
        sums.append(total)
        if of_student is not None:
            product(slope, weight, out=out)
        if of_weight is not None:
            add_product_(of_weight, slope.T, clean)
        if of_bias is not None:
            of_bias.add_(slope.sum(dim=0))
    return _total(sums, student), (of_student, of_weight, of_bias)


# ---- both --------------------------------------------------------------------------------------------------------


def _at_once(tokens: int, device: torch.device) -> int:
    """Tokens of a chunk where a CPU takes so many."""
    return tokens if device.type == "cpu" else _GPU_TOKENS


def _chunks(size: int, student: Tensor, teacher: Tensor, mask: Tensor, *results: Tensor) -> list[tuple[Tensor, ...]]:
    """Rows of at most `size` tokens each: student [n, Ds], teacher [n, D], mask [n, 1], and views of `results`."""
    flat = [x.flatten(0, -2) for x in (student, teacher, mask[..., None], *results)]
    return list(zip(*(x.split(size) for x in flat), strict=True))


def _total(sums: list[Tensor], like: Tensor) -> Tensor:
    """Sum of chunk sums, [] float32; 0 without chunks."""
    return torch.stack(sums).sum() if sums else like.new_zeros((), dtype=torch.float32)
