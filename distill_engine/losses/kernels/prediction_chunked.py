"""Task and prediction from hidden states on any machine: the pointwise work of `prediction_blocks` in torch.

Rows are handled a few at a time, so that the passes over them meet in the processor's cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill_engine.losses.kernels.masked_mse import zero_unless_
from distill_engine.losses.kernels.prediction_divergence import InTorch
from distill_engine.losses.kernels.prediction_tokens import SUMS, LogitBlock, finished, row_tiles
from distill_engine.values import IGNORED_LABEL

_GROUP = 64


class TorchPointwise(InTorch):
    """See `prediction_blocks.Pointwise`."""

    compact = True

    def sums(self, block: LogitBlock) -> Tensor:
        """One part per block."""
        found = block.student.new_empty(len(SUMS), 1, len(block.student), dtype=torch.float32)
        for rows in row_tiles(block.student):
            _tile_sums(block, rows, found[:, 0, rows])
        return found

    def gradient_(self, block: LogitBlock, moments: Tensor, task: Tensor, prediction: Tensor) -> None:
        """task' p_s + prediction' T p_s,T - prediction' T p_t,T, then the label's -task'."""
        factors = torch.stack([task, prediction * block.temperature, prediction * block.temperature])[:, None]
        factors = moments[2:] * factors  # [3, N]
        for rows in row_tiles(block.student):
            _tile_gradient_(block, rows, moments[:2, rows, None], factors[:, rows, None], task)


def _tile_sums(block: LogitBlock, rows: slice, found: Tensor) -> None:
    """Fill [len(SUMS), r]."""
    into = dict(zip(SUMS, found, strict=True))
    student = finished(block.student[rows], block.student_bias, block.masked)  # [r, W]
    column, here = _label_column(block, rows)
    into["label_logit"].copy_(student.gather(1, column).masked_fill_(~here, 0.0).squeeze(1))
    _maximum(student, block.first, into["student_max"], into["student_argmax"])
    student = student - into["student_max"][:, None]
    if block.teacher is None:
        into["student_sum"].copy_(student.exp_().sum(dim=1))
        for name in ("student_tempered", "teacher_max", "teacher_tempered", "teacher_argmax", "cross"):
            into[name].zero_()
        return
    teacher = finished(block.teacher[rows], block.teacher_bias, block.masked)
    _maximum(teacher, block.first, into["teacher_max"], into["teacher_argmax"])
    teacher = teacher - into["teacher_max"][:, None]
    difference = teacher - student
    if block.temperature != 1.0:
        into["student_sum"].copy_(student.exp().sum(dim=1))
        for logits in (student, teacher, difference):
            logits.div_(block.temperature)
    into["student_tempered"].copy_(student.exp_().sum(dim=1))
    if block.temperature == 1.0:
        into["student_sum"].copy_(into["student_tempered"])
    into["teacher_tempered"].copy_(teacher.exp_().sum(dim=1))
    into["cross"].copy_(teacher.mul_(difference).sum(dim=1))


def _tile_gradient_(block: LogitBlock, rows: slice, maxima: Tensor, factors: Tensor, task: Tensor) -> None:
    """One tile of the gradient; maxima [2, r, 1], factors [3, r, 1] (upstream over sum of exponentials)."""
    own, tempered, teachers = factors
    student = finished(block.student[rows], block.student_bias, block.masked) - maxima[0]
    if block.teacher is None:
        student.exp_().mul_(own)
    else:
        teacher = finished(block.teacher[rows], block.teacher_bias, block.masked) - maxima[1]
        if block.temperature == 1.0:
            student.exp_().mul_(own + tempered)
        else:
            soft = (student / block.temperature).exp_().mul_(tempered)
            student.exp_().mul_(own).add_(soft)
            teacher.div_(block.temperature)
        student.sub_(teacher.exp_().mul_(teachers))
    column, here = _label_column(block, rows)
    student.scatter_add_(1, column, -task * here)
    if block.masked is not None:
        student[:, block.masked] = 0.0  # the model sets this logit: it does not come from the hidden states
    zero_unless_(student, (block.labels[rows] != IGNORED_LABEL)[:, None])
    block.student[rows] = student


def _maximum(logits: Tensor, first: int, value: Tensor, argmax: Tensor) -> None:
    """Row maxima and the vocabulary ids where they are first reached.

    In two steps, because the search for a place is not vectorised on a CPU: the maxima of short groups are.
    """
    group = _GROUP if logits.shape[1] % _GROUP == 0 else 1
    grouped = logits.unflatten(1, (-1, group))  # [r, W / group, group]
    found = (grouped.amax(dim=2) if group > 1 else logits).max(dim=1)
    value.copy_(found.values)
    winners = grouped[torch.arange(len(logits), device=logits.device), found.indices]  # [r, group]
    argmax.copy_(winners.argmax(dim=1) + found.indices * group + first)


def _label_column(block: LogitBlock, rows: slice) -> tuple[Tensor, Tensor]:
    """[r, 1] column of each row's label, clamped into the block, and whether it lies in it."""
    width = block.student.shape[1]
    column = block.labels[rows, None] - block.first
    return column.clamp(0, width - 1), (column >= 0) & (column < width)
