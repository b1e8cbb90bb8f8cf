"""Task cross-entropy and the prediction term (KL from the teacher) over the vocabulary.

    task       = sum over label tokens of -log p_s(label)                                       temperature 1
    prediction = T^2 * sum over label tokens and vocabulary of p_t (log p_t - log p_s)          softmax of logits / T

Softmax in float32 over the whole vocabulary. T = 1 is ParlAI; the factor T^2 keeps gradients comparable
(Hinton et al. 2015). Both families arrive with their never-predicted ids already at "minus infinity" in both
models: these add exactly zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_engine.losses.divergences.forward_kl import FORWARD_KL
from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.losses.kernels.masked_mse import zero_unless_
from distill_engine.losses.kernels.prediction_divergence import by_logits, share
from distill_engine.values import IGNORED_LABEL


def task_sum(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy with the labels; [B, T, V] and [B, T] (-100 ignored) -> [] float32."""
    total: Tensor = _Task.apply(student_logits, labels)
    return total


def divergence_sum(
    measure: Divergence, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """The same sum of any divergence, times temperature squared; [B, T, V], [B, T, V], [B, T] -> [] float32."""
    if measure is FORWARD_KL:
        return prediction_sum(student_logits, teacher_logits, labels, temperature)
    total: Tensor = _Divergence.apply(student_logits, teacher_logits, labels == IGNORED_LABEL, temperature, measure)
    return total


def prediction_sum(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Summed forward KL divergence at label positions; [B, T, V], [B, T, V], [B, T] -> [] float32."""
    student, teacher = student_logits.float() / temperature, teacher_logits.float() / temperature
    any_label = labels.clamp(max=0)  # the task sum is not asked for: which token is labelled makes no difference
    return task_and_prediction_sums(student, teacher, any_label)[1] * temperature**2


def task_and_prediction_sums(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both sums at temperature 1, from one softmax of each model; [B, T, V], [B, T, V], [B, T] -> [], [] float32."""
    task, prediction = _TaskAndPrediction.apply(student_logits, teacher_logits, labels)
    return task, prediction


class _Task(torch.autograd.Function):
    """The task sum with log p_s kept. Not torch's own cross-entropy: its gradient is nan at ignored positions that
    hold inf or nan."""

    @staticmethod
    def forward(ctx: Any, student_logits: Tensor, labels: Tensor) -> Tensor:
        ignored = labels == IGNORED_LABEL  # [B, T]
        label = labels.masked_fill(ignored, 0)[..., None]  # [B, T, 1]
        student = torch.log_softmax(student_logits, dim=-1, dtype=torch.float32)  # [B, T, V]
        ctx.save_for_backward(student, label, ignored)
        ctx.dtype = student_logits.dtype
        return student.gather(-1, label).squeeze(-1).neg().masked_fill(ignored, 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, task: Tensor) -> tuple[Tensor, None]:
        student, label, ignored = ctx.saved_tensors
        gradient = student.exp().mul_(task)
        gradient.scatter_add_(-1, label, -task.expand(label.shape))
        return zero_unless_(gradient, ~ignored[..., None]).to(ctx.dtype), None


class _TaskAndPrediction(torch.autograd.Function):
    """Both sums with p_s and p_t kept, and their gradients formed together:

        d task / d s = p_s - onehot(label)          d prediction / d s = p_s - p_t

    Positions without a label may hold inf or nan; they are overwritten with zeros at the end.
    """

    @staticmethod
    def forward(ctx: Any, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        ignored = labels == IGNORED_LABEL  # [B, T]
        label = labels.masked_fill(ignored, 0)[..., None]  # [B, T, 1]
        student = torch.log_softmax(student_logits, dim=-1, dtype=torch.float32)  # [B, T, V]
        teacher = torch.log_softmax(teacher_logits, dim=-1, dtype=torch.float32)
        log_ratio = teacher - student
        teacher = teacher.exp_()
        divergence = log_ratio.mul_(teacher).sum(dim=-1).masked_fill(ignored, 0.0)  # [B, T]
        task = student.gather(-1, label).squeeze(-1).neg().masked_fill(ignored, 0.0)
        ctx.save_for_backward(student.exp_(), teacher, label, ignored)
        ctx.dtype = student_logits.dtype
        return task.sum(), divergence.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, task: Tensor, prediction: Tensor) -> tuple[Tensor, None, None]:
        student, teacher, label, ignored = ctx.saved_tensors
        gradient = student * (task + prediction)
        gradient.addcmul_(teacher, prediction, value=-1.0)
        gradient.scatter_add_(-1, label, -task.expand(label.shape))
        return zero_unless_(gradient, ~ignored[..., None]).to(ctx.dtype), None, None


class _Divergence(torch.autograd.Function):
    """Any divergence, pointwise in log p, with its slope by the logits kept. With g the slope by log p_s:

    d / d s = T (g - p_s sum g)          both softmaxes at temperature T, the sum times T^2
    d / d s = T g / V                    of one of logits, with g the slope by s / T
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_logits: Tensor,
        teacher_logits: Tensor,
        ignored: Tensor,
        temperature: float,
        measure: Divergence,
    ) -> Tensor:
        student, teacher = (logits.float() / temperature for logits in (student_logits, teacher_logits))
        if measure.of == "log_probabilities":
            student, teacher = torch.log_softmax(student, dim=-1), torch.log_softmax(teacher, dim=-1)
        value, slope = measure.value_and_slope(student, teacher)  # [B, T, V]
        slope = by_logits(measure, student, slope, slope.sum(dim=-1, keepdim=True))
        ctx.save_for_backward(slope, ignored)
        ctx.dtype, part = student_logits.dtype, share(measure, student.shape[-1])
        ctx.factor = temperature * part
        return value.sum(dim=-1).masked_fill(ignored, 0.0).sum() * (temperature**2 * part)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        slope, ignored = ctx.saved_tensors
        gradient = zero_unless_(slope * (upstream * ctx.factor), ~ignored[..., None])
        return gradient.to(ctx.dtype), None, None, None, None
