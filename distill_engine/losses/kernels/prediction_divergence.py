"""Other divergences than forward KL over blocks of the vocabulary: pointwise, once the normalisers are known.

`prediction_blocks` goes over the blocks once for maxima and sums of exponentials. A divergence that is a sum of
f(log p_s, log p_t) over the vocabulary then takes a second pass for its value and G = sum g, g = df / dlog p_s, and the
backward pass has

    ds = T (g - p_s,T G)

In torch on every device: a divergence of somebody else's is no kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.losses.kernels.masked_mse import zero_unless_
from distill_engine.losses.kernels.prediction_tokens import MOMENTS, finished, row_tiles
from distill_engine.values import IGNORED_LABEL

if TYPE_CHECKING:
    from distill_engine.losses.kernels.prediction_blocks import LogitBlock


def values_and_slopes(block: LogitBlock, moments: Tensor, measure: Divergence) -> Tensor:
    """[2, N] float32: this block's part of every token's divergence and of G; of ignored tokens anything.

    moments [len(MOMENTS), N]
    """
    found = moments.new_empty(2, len(block.student))
    for rows in row_tiles(block.student):
        value, slope = measure.value_and_slope(*_log_probabilities(block, moments, rows))
        torch.sum(value, dim=1, out=found[0, rows])
        torch.sum(slope, dim=1, out=found[1, rows])
    return found


def logit_slopes(block: LogitBlock, moments: Tensor, slopes: Tensor, upstream: Tensor, measure: Divergence) -> Tensor:
    """[N, W] float32: upstream [] times ds, with `slopes` [N] the G of all blocks; 0 at ignored tokens."""
    result = moments.new_empty(block.student.shape)
    for rows in row_tiles(block.student):
        student, teacher = _log_probabilities(block, moments, rows)
        _, slope = measure.value_and_slope(student, teacher)
        torch.addcmul(slope, student.exp(), slopes[rows, None], value=-1.0, out=result[rows])
    result.mul_(upstream * block.temperature)
    if block.masked is not None:
        result[:, block.masked] = 0.0  # the model sets this logit: it does not come from the hidden states
    return zero_unless_(result, (block.labels != IGNORED_LABEL)[:, None])


def _log_probabilities(block: LogitBlock, moments: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """[r, W] float32 of student and teacher, at the block's temperature."""
    assert block.teacher is not None
    of = dict(zip(MOMENTS, moments[:, rows, None], strict=True))
    student = finished(block.student[rows], block.student_bias, block.masked) - of["student_max"]
    teacher = finished(block.teacher[rows], block.teacher_bias, block.masked) - of["teacher_max"]
    return (
        student.div_(block.temperature).add_(of["student_tempered"].log()),
        teacher.div_(block.temperature).add_(of["teacher_tempered"].log()),
    )
