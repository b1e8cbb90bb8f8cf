"""Other divergences than forward KL over blocks of the vocabulary: pointwise, once the normalisers are known.

`prediction_blocks` goes over the blocks once for maxima and sums of exponentials. A divergence that is a sum of
f(log p_s, log p_t) over the vocabulary then takes a second pass for its value and G = sum g, g = df / dlog p_s, and the
backward pass has

    ds = T (g - p_s,T G)

One of logits, f(s / T, t / T), has no normaliser and is a mean: ds = T g / V.

Here in torch, for every device and any divergence; `prediction_divergence_triton` has those with a Triton twin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.losses.kernels.masked_mse import zero_unless_
from distill_engine.losses.kernels.prediction_tokens import MOMENTS, LogitBlock, finished, row_tiles
from distill_engine.values import IGNORED_LABEL


class InTorch:
    """The divergence's half of `prediction_blocks.Pointwise`, whoever has the other."""

    gradient_: Callable[[LogitBlock, Tensor, Tensor, Tensor], None]

    def values_and_slopes(self, block: LogitBlock, moments: Tensor, measure: Divergence) -> Tensor:
        """One part per block."""
        return values_and_slopes(block, moments, measure)

    def measured_gradient_(
        self, block: LogitBlock, moments: Tensor, slopes: Tensor, task: Tensor, prediction: Tensor, measure: Divergence
    ) -> None:
        """The task's gradient, and the divergence's added to it."""
        other = logit_slopes(block, moments, slopes, prediction, measure)
        self.gradient_(replace(block, teacher=None, teacher_bias=None), moments, task, torch.zeros_like(task))
        block.student.add_(other)


def values_and_slopes(block: LogitBlock, moments: Tensor, measure: Divergence) -> Tensor:
    """[2, 1, N] float32: this block's part of every token's divergence and of G; of ignored tokens anything.

    moments [len(MOMENTS), N]
    """
    found = moments.new_empty(2, 1, len(block.student))
    for rows in row_tiles(block.student):
        value, slope = measure.value_and_slope(*_operands(block, moments, rows, measure))
        torch.sum(value, dim=1, out=found[0, 0, rows])
        torch.sum(slope, dim=1, out=found[1, 0, rows])
    return found


def logit_slopes(block: LogitBlock, moments: Tensor, slopes: Tensor, upstream: Tensor, measure: Divergence) -> Tensor:
    """[N, W] float32: upstream [] times ds, with `slopes` [N] the G of all blocks; 0 at ignored tokens."""
    result = moments.new_empty(block.student.shape)
    for rows in row_tiles(block.student):
        student, teacher = _operands(block, moments, rows, measure)
        _, slope = measure.value_and_slope(student, teacher)
        result[rows] = by_logits(measure, student, slope, slopes[rows, None])
    result.mul_(upstream * block.temperature)
    if block.masked is not None:
        result[:, block.masked] = 0.0  # the model sets this logit: it does not come from the hidden states
    return zero_unless_(result, (block.labels != IGNORED_LABEL)[:, None])


def by_logits(measure: Divergence, log_student: Tensor, slope: Tensor, slopes: Tensor) -> Tensor:
    """The slope by logits over the temperature, from that by what the divergence looks at; slopes: G, broadcastable."""
    return slope if measure.of == "logits" else torch.addcmul(slope, log_student.exp(), slopes, value=-1.0)


def share(measure: Divergence, vocabulary: int) -> float:
    """What the sum over the vocabulary is multiplied by."""
    return 1.0 / vocabulary if measure.of == "logits" else 1.0


def _operands(block: LogitBlock, moments: Tensor, rows: slice, measure: Divergence) -> tuple[Tensor, Tensor]:
    """[r, W] float32 of student and teacher, at the block's temperature: what the divergence looks at."""
    assert block.teacher is not None
    student = finished(block.student[rows], block.student_bias, block.masked)
    teacher = finished(block.teacher[rows], block.teacher_bias, block.masked)
    if measure.of == "logits":
        return student / block.temperature, teacher / block.temperature
    of = dict(zip(MOMENTS, moments[:, rows, None], strict=True))
    return (
        (student - of["student_max"]).div_(block.temperature).add_(of["student_tempered"].log()),
        (teacher - of["teacher_max"]).div_(block.temperature).add_(of["teacher_tempered"].log()),
    )
