"""How every label token is predicted, teacher-forced: what token metrics are made of (distill_engine/metrics)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from distill_engine.values import IGNORED_LABEL

_WIDENED = 1 << 18  # logits at a time in a wider copy: 1 MiB of float32


class TokenScores(NamedTuple):
    """How every label position was predicted, [B, T] each; 0 and False where there is no label.

    loss        floating point, -log p(label)
    correct     bool, the label is the student's best token
    agreeing    bool, the student's best token is the teacher's; None without one
    divergence  floating point, temperature^2 KL(teacher || student); None if not asked for or without a teacher
    """

    loss: Tensor
    correct: Tensor
    agreeing: Tensor | None
    divergence: Tensor | None


@torch.no_grad()
def token_scores(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> TokenScores:
    """From whole logits [B, T, V]; no divergence."""
    loss = functional.cross_entropy(
        student_logits.float().transpose(1, 2), labels, ignore_index=IGNORED_LABEL, reduction="none"
    )
    return TokenScores(loss, *_hits(student_logits, teacher_logits, labels), None)


@torch.no_grad()
def accuracy_counts(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Label positions that the student predicts, and where it agrees with the teacher (None without one); []."""
    correct, agreeing = _hits(student_logits, teacher_logits, labels)
    return correct.sum(), None if agreeing is None else agreeing.sum()


def _hits(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """[B, T] bool each: predicted the label; predicted what the teacher predicts."""
    predicted = _highest(student_logits)
    correct = predicted == labels  # a label of -100 is no prediction
    if teacher_logits is None:
        return correct, None
    return correct, (predicted == _highest(teacher_logits)) & (labels != IGNORED_LABEL)


def _highest(logits: Tensor) -> Tensor:
    """[B, T]: the likeliest token; on CPUs a search in half precision takes three times as long as in a wider copy, of
    which no more than some rows exist at a time."""
    if logits.device.type != "cpu" or logits.element_size() != 2:
        return logits.argmax(dim=-1)
    rows = logits.flatten(0, 1).split(max(1, _WIDENED // logits.shape[-1]))
    return torch.cat([some.float().argmax(dim=-1) for some in rows]).view(logits.shape[:-1])
