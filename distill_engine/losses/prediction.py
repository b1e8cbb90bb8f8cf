"""Task cross-entropy and the prediction term (KL from the teacher) over the vocabulary.

    task       = sum over label tokens of -log p_s(label)                                       temperature 1
    prediction = T^2 * sum over label tokens and vocabulary of p_t (log p_t - log p_s)          softmax of logits / T

Softmax in float32 over the whole vocabulary. T = 1 is ParlAI; the factor T^2 keeps gradients comparable
(Hinton et al. 2015). Both families arrive with their never-predicted ids already at "minus infinity" in both
models: these add exactly zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from distill_engine.values import IGNORED_LABEL


def task_sum(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy with the labels; [B, T, V] and [B, T] (-100 ignored) -> [] float32."""
    keep = labels != IGNORED_LABEL  # picked out, not ignored: an inf or nan at padding would give a nan gradient
    return functional.cross_entropy(student_logits[keep].float(), labels[keep], reduction="sum")


def prediction_sum(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Summed KL divergence at label positions; [B, T, V], [B, T, V], [B, T] -> [] float32."""
    keep = labels != IGNORED_LABEL  # [B, T]
    student = functional.log_softmax(student_logits[keep].float() / temperature, dim=-1)  # [tokens, V]
    with torch.no_grad():
        teacher = functional.log_softmax(teacher_logits[keep].float() / temperature, dim=-1)
    divergence = functional.kl_div(student, teacher, log_target=True, reduction="sum")
    return divergence * temperature**2
