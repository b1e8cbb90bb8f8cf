"""How much tokens resemble each other by one of attention's vectors, compared between two models (MiniLMv2).

    A = softmax(x x^T / sqrt(d))       x [L, d]: one relation head's part of every token's queries (or keys)
    term = sum over tokens of KL(A_teacher || A_student), mean over relation heads

With S = (A_student - A_teacher) / sqrt(d) the gradient is (S + S^T) x. It is formed in the forward pass: the matrices
[L, L] of one layer exist at a time, and what is held has the size of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MASKED = -1e20  # finite, so that a row without any token gives no nan


def relation_heads(student: Tensor, teacher: Tensor) -> int:
    """The largest number that divides both widths, up to the larger number of heads; [B, H, L, E] both."""
    widths = [one.shape[1] * one.shape[3] for one in (student, teacher)]
    most = max(student.shape[1], teacher.shape[1])
    return next(number for number in range(most, 0, -1) if not any(width % number for width in widths))


def relation_sum(student: Tensor, teacher: Tensor, mask: Tensor, causal: bool) -> Tensor:
    """[] float32; [B, H, L, E] of each model, heads and their size may differ. mask [B, L] bool: tokens that count, as
    rows and as columns, what is masked may hold inf or nan; causal: a token sees no later one."""
    total: Tensor = _Relation.apply(student, teacher, mask, causal, relation_heads(student, teacher))
    return total


class _Relation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor, causal: bool, heads: int) -> Tensor:
        hidden = ~(mask[:, None, None, :] & mask[:, None, :, None])  # [B, 1, L, L]
        if causal:
            hidden = hidden | hidden.new_ones(hidden.shape[-2:]).triu(diagonal=1)
        own = _relation_vectors(student, mask, heads)
        log_own = _log_relations(own, hidden)
        log_other = _log_relations(_relation_vectors(teacher, mask, heads), hidden)
        right = log_other.exp()
        rows = mask[:, None, :, None]
        total = (right * (log_other - log_own)).masked_fill(~rows, 0.0).sum() / heads
        if ctx.needs_input_grad[0]:
            slope = (log_own.exp_() - right).masked_fill_(~rows, 0.0).mul_(own.shape[-1] ** -0.5 / heads)
            vectors = slope @ own + slope.mT @ own  # [B, R, L, d]
            batch, count, length, size = student.shape
            ctx.save_for_backward(vectors.transpose(1, 2).reshape(batch, length, count, size).transpose(1, 2))
        ctx.dtype = student.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None, None, None, None


def _relation_vectors(vectors: Tensor, mask: Tensor, heads: int) -> Tensor:
    """[B, H, L, E] -> [B, R, L, H E / R] float32, zeros where masked."""
    batch, _, length, _ = vectors.shape
    together = vectors.transpose(1, 2).reshape(batch, length, heads, -1)
    return together.masked_fill(~mask[:, :, None, None], 0.0).float().transpose(1, 2)


def _log_relations(vectors: Tensor, hidden: Tensor) -> Tensor:
    """[B, R, L, L] float32."""
    products = (vectors * vectors.shape[-1] ** -0.5) @ vectors.mT
    return torch.log_softmax(products.masked_fill_(hidden, _MASKED), dim=-1)
