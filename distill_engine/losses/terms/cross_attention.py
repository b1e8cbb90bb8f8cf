"""Squared error of encoder-decoder attention scores before the softmax."""

from __future__ import annotations

from distill_engine.losses.terms.self_attention import Scores
from distill_engine.values import AttentionKind

CROSS = Scores(
    "cross_attention",
    "squared error of encoder-decoder attention scores before softmax",
    AttentionKind.CROSS,
    weight="cross_attention",
)
