"""Squared error of attention scores before the softmax, student against teacher.

    scores = scale * q . k                        each model with its own head size and scale
    term   = sum over valid (query, key) pairs of mean over heads of clamp((s - t)^2, max)

ParlAI compares the masked score matrices. Both hold the same fill value where a key is masked, so masked pairs
add zero; what differs between the two definitions is the denominator (see `losses.objective`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill_engine.values import QueryKey


def attention_mse_sum(student: QueryKey, teacher: QueryKey, pair_mask: Tensor, clamp: float | None) -> Tensor:
    """Sum over valid pairs of the squared score difference, mean over heads.

    student, teacher  query [B, H, Q, Es | Et], key [B, H, K, Es | Et]; same number of heads
    pair_mask         [B or 1, Q, K] bool, True where the query counts and may see the key
    clamp             largest squared difference of one pair, or None
    returns           [] float32
    """
    squared = score_difference(student, teacher).square()  # [B, H, Q, K]
    if clamp is not None:
        squared = squared.clamp(max=clamp)
    return squared.masked_fill(~pair_mask[:, None], 0.0).sum() / student.query.shape[1]


def score_difference(student: QueryKey, teacher: QueryKey) -> Tensor:
    """Student scores minus teacher scores, [B, H, Q, K] float32.

    One matrix product instead of two: [s*Qs, -t*Qt] [Ks, Kt]^T along the head dimension, so neither model's own
    score matrix is ever stored.
    """
    if student.query.shape[1] != teacher.query.shape[1]:
        raise ValueError(
            f"attention scores: the student has {student.query.shape[1]} heads, the teacher "
            f"{teacher.query.shape[1]}. They can only be compared head by head; use equal heads or weight 0."
        )
    query = torch.cat([student.query.float() * student.scale, teacher.query.float() * -teacher.scale], dim=-1)
    key = torch.cat([student.key.float(), teacher.key.float()], dim=-1)
    return query @ key.transpose(-1, -2)


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
