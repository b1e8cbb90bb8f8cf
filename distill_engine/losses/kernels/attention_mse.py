"""Squared error of attention scores before the softmax, student against teacher.

    scores = scale * q . k [+ bias]               each model with its own head size, scale and position bias
    term   = sum over valid (query, key) pairs of mean over heads of clamp((s - t)^2, max)

ParlAI compares the masked score matrices. Both hold the same fill value where a key is masked, so masked pairs
add zero; what differs between the two definitions is the denominator (see `losses.objective`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_engine.losses.kernels.masked_mse import squared_sum_and_slope_
from distill_engine.values import QueryKey


def attention_mse_sum(student: QueryKey, teacher: QueryKey, pair_mask: Tensor, clamp: float | None) -> Tensor:
    """Sum over valid pairs of the squared score difference, mean over heads.

    student, teacher  query [B, H, Q, Es | Et], key [B, H, K, Es | Et]; same number of heads; bias [H, Q, K] or None
    pair_mask         [B or 1, Q, K] bool, True where the query counts and may see the key
    clamp             largest squared difference of one pair, or None
    returns           [] float32
    """
    if student.query.shape[1] != teacher.query.shape[1]:
        raise ValueError(
            f"attention scores: the student has {student.query.shape[1]} heads, the teacher "
            f"{teacher.query.shape[1]}. They can only be compared head by head; use equal heads or weight 0."
        )
    offset = bias_difference(student, teacher)
    total: Tensor = _ScoreError.apply(student.query, student.key, offset, student.scale, teacher, pair_mask, clamp)
    return total / student.query.shape[1]


def bias_difference(student: QueryKey, teacher: QueryKey) -> Tensor | None:
    """[H, Q, K] float32: how far the position biases are apart; None where neither model has one."""
    if student.bias is None:
        return None if teacher.bias is None else -teacher.bias.float()
    return student.bias.float() if teacher.bias is None else student.bias.float() - teacher.bias.float()


class _ScoreError(torch.autograd.Function):
    """Sum of squared score differences, with one [B, H, Q, K] kept for the backward pass.

    With D = scale * q k^T + offset - (teacher's product) and G = dsum/dD (see squared_sum_and_slope_):

        dq = scale * G k          dk = scale * G^T q          doffset = G, summed over examples
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        offset: Tensor | None,
        scale: float,
        teacher: QueryKey,
        pair_mask: Tensor,
        clamp: float | None,
    ) -> Tensor:
        flat = QueryKey(_flat(query), _flat(key), scale)
        difference = _flat_difference(flat, teacher).view(*query.shape[:3], key.shape[2])
        if offset is not None:
            difference += offset
        total, slope = squared_sum_and_slope_(difference, pair_mask[:, None], clamp)
        # rows in no valid pair may hold anything: their slopes are 0, but 0 * nan is nan
        kept_query = _zero_unless(flat.query, pair_mask.any(dim=2), query.shape[0])
        kept_key = _zero_unless(flat.key, pair_mask.any(dim=1), query.shape[0])
        ctx.save_for_backward(kept_query, kept_key, slope.flatten(0, 1))
        ctx.scale, ctx.shapes, ctx.dtype = scale, (query.shape, key.shape), query.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, slope = ctx.saved_tensors
        of_offset = None
        if ctx.needs_input_grad[2]:
            of_offset = slope.unflatten(0, ctx.shapes[0][:2]).sum(dim=0).mul_(gradient * 2.0)
        factor = gradient * (2.0 * ctx.scale)
        gradients = ((slope @ key).mul_(factor), (slope.transpose(1, 2) @ query).mul_(factor))
        of_query, of_key = (g.view(s).to(ctx.dtype) for g, s in zip(gradients, ctx.shapes, strict=True))
        return of_query, of_key, of_offset, None, None, None, None


def _flat_difference(student: QueryKey, teacher: QueryKey) -> Tensor:
    """[B * H, Q, K]; the student's query and key come flat, the teacher's as they are."""
    scores = student.query @ student.key.transpose(1, 2)
    keys = _flat(teacher.key).transpose(1, 2)
    torch.baddbmm(scores, _flat(teacher.query), keys, beta=student.scale, alpha=-teacher.scale, out=scores)
    return scores


def _flat(heads: Tensor) -> Tensor:
    """[B, H, L, E] -> [B * H, L, E] float32."""
    return heads.flatten(0, 1).float()


def _zero_unless(flat: Tensor, rows: Tensor, examples: int) -> Tensor:
    """[B * H, L, E] with zeros in rows that `rows` [B or 1, L] does not name."""
    by_head = flat.unflatten(0, (examples, -1))
    return by_head.masked_fill(~rows[:, None, :, None], 0.0).flatten(0, 1)


def pair_mask(query_mask: Tensor, key_mask: Tensor | None, causal: bool) -> Tensor:
    """[B, Q, K] bool: pairs that count.

    query_mask [B, Q] bool; key_mask [B, K] bool, or None where keys are not padded away (decoder self-attention);
    causal: key position <= query position.
    """
    mask = query_mask[:, :, None]
    if key_mask is not None:
        mask = mask & key_mask[:, None, :]
    if causal:
        length = query_mask.shape[1]
        mask = mask & torch.ones(length, length, dtype=torch.bool, device=query_mask.device).tril()
    return mask
