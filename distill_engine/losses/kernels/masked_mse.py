"""Mean squared error of hidden vectors at unmasked tokens: encoder output, embeddings, layer outputs.

    term = sum over unmasked tokens of mean over D of clamp((s - t)^2, max)        (ParlAI, DistilBERT/TinyBERT agents)

The caller divides by a token count. Clamped elements have zero gradient. The arithmetic is float32 whatever the
inputs are, so the square of an fp16 difference cannot overflow before the clamp sees it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

_KEPT = WeakTensorKeyDictionary()  # mask -> its `kept_rows`


def masked_mse_sum(student: Tensor, teacher: Tensor, mask: Tensor, clamp: float | None) -> Tensor:
    """Sum over unmasked tokens of the mean squared difference over the width.

    student, teacher  [B, L, D], same width, any float dtype
    mask              [B, L] bool, True where a token counts
    clamp             largest squared difference of one element, or None
    returns           [] float32
    """
    total: Tensor = _MaskedSquaredError.apply(student, teacher, mask, clamp)
    return total / student.shape[-1]


class _MaskedSquaredError(torch.autograd.Function):
    """Sum of squared differences; the difference's memory becomes the gradient, so nothing else is kept.

    Autograd would keep difference, square and clamp mask, and go over all of them once more.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor, clamp: float | None) -> Tensor:
        total, slope = squared_sum_and_slope_(student.float() - teacher.float(), mask[..., None], clamp)
        ctx.save_for_backward(slope)
        ctx.dtype = student.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * (2.0 * gradient)).to(ctx.dtype), None, None, None


def squared_sum_and_slope_(difference: Tensor, keep: Tensor | None, clamp: float | None) -> tuple[Tensor, Tensor]:
    """Sum of clamp(difference^2, max) over kept elements, [], and half its derivative, in the difference's memory.

    difference  float32, overwritten
    keep        bool, broadcastable to it; what is not kept may hold inf or nan; None: all is kept
    clamp       largest square of one element, or None; a clamped element has derivative 0
    """
    if keep is not None:
        zero_unless_(difference, keep)
    squared = difference.square()
    if clamp is None:
        return squared.sum(), difference
    # one pass instead of a comparison and a fill: the first argument where the second lies inside the bounds, else 0
    torch.ops.aten.hardtanh_backward.grad_input(difference, squared, -1.0, clamp, grad_input=difference)
    return squared.clamp_(max=clamp).sum(), difference


def kept_rows(mask: Tensor) -> Tensor:
    """[B L] int32 of a mask [B, L], the smallest that a kernel's asynchronous copies can fetch. Made once for all terms
    of a stack: it is kept while the mask lives, which nobody writes to."""
    found: Tensor | None = _KEPT.get(mask)
    if found is None:
        found = _KEPT[mask] = mask.flatten().to(torch.int32)
    return found


def zero_unless_(values: Tensor, keep: Tensor) -> Tensor:
    """Set float32 `values` to 0 in place where `keep` (bool, broadcastable) is False, inf and nan as well.

    By their bits: a product would leave nan, and masked_fill_ is not vectorised on a CPU.
    """
    values.view(torch.int32).bitwise_and_(-keep.to(torch.int32))  # -1: all bits, 0: none
    return values
