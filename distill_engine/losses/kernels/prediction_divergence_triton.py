"""Divergences with a twin in Triton, over blocks of the vocabulary on a GPU: `prediction_divergence` in two kernels.

As those of `prediction_triton`: one program takes one token and up to 4096 ids of both models in one read, and the
gradient of task and divergence together is written over the student's logits, rounded once. The twin is a constant of
the kernels: one variant is compiled for each divergence that is trained with.
"""

from __future__ import annotations

import importlib
from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.losses.kernels.occupancy import register_limit_on
from distill_engine.losses.kernels.prediction_tokens import LogitBlock
from distill_engine.losses.kernels.prediction_triton import (
    SIZES,
    TritonPointwise,
    columns,
    constants,
    inputs,
    logits,
    on,
)


class MeasuringPointwise(TritonPointwise):
    """See `prediction_blocks.Pointwise`. A divergence without a twin is computed in torch."""

    def values_and_slopes(self, block: LogitBlock, moments: Tensor, measure: Divergence) -> Tensor:
        """One part per program."""
        if not measure.twin:
            return super().values_and_slopes(block, moments, measure)
        tokens, (each, parts) = len(block.labels), columns(block)
        found = moments.new_empty(2, parts, tokens)
        if tokens:
            with on(block.student):
                _values_kernel[(tokens, parts)](
                    *inputs(block), moments, measure.number, found, **_constants(block, each, measure)
                )
        return found

    def measured_gradient_(
        self, block: LogitBlock, moments: Tensor, slopes: Tensor, task: Tensor, prediction: Tensor, measure: Divergence
    ) -> None:
        """Task and divergence together."""
        if not measure.twin:
            return super().measured_gradient_(block, moments, slopes, task, prediction, measure)
        tokens, (each, parts) = len(block.labels), columns(block)
        if tokens:
            with on(block.student):
                _gradient_kernel[(tokens, parts)](
                    *inputs(block), moments, measure.number, slopes, task.float(), prediction.float(),
                    **_constants(block, each, measure),
                )  # fmt: skip
        return None


def _constants(block: LogitBlock, each: int, measure: Divergence) -> dict[str, object]:
    found = constants(block, each) | {"LOGITS": measure.of == "logits", "POINTWISE": _twin(measure.twin)}
    del found["TEACHER"], found["TEMPERED"]
    warps = found["num_warps"]
    assert isinstance(warps, int)
    return found | register_limit_on(block.student.device, warps)


@lru_cache(maxsize=16)
def _twin(target: str) -> object:
    """The function of `module:function`."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@triton.jit
def _operands(
    student_ptr, teacher_ptr, student_bias_ptr, teacher_bias_ptr, row, tokens, column, inside, stride, masked,
    temperature, moments,
    STUDENT_FILL: tl.constexpr, TEACHER_FILL: tl.constexpr, STUDENT_BIAS: tl.constexpr, TEACHER_BIAS: tl.constexpr,
    LOGITS: tl.constexpr,
):  # fmt: skip
    """What the divergence looks at, of student and teacher, and the student's logits below their maximum; outside the
    block equal numbers, so that nothing becomes nan."""
    student = logits(student_ptr, student_bias_ptr, row, stride, column, inside, masked, STUDENT_BIAS, STUDENT_FILL)
    teacher = logits(teacher_ptr, teacher_bias_ptr, row, stride, column, inside, masked, TEACHER_BIAS, TEACHER_FILL)
    student, teacher = tl.where(inside, student, -1e20), tl.where(inside, teacher, -1e20)
    below = student - tl.load(moments)
    if LOGITS:
        return student / temperature, teacher / temperature, below
    log_student = below / temperature + tl.log(tl.load(moments + 3 * tokens))
    log_teacher = (teacher - tl.load(moments + tokens)) / temperature + tl.log(tl.load(moments + 4 * tokens))
    return log_student, log_teacher, below


@triton.jit(do_not_specialize=SIZES)
def _values_kernel(
    student_ptr, teacher_ptr, student_bias_ptr, teacher_bias_ptr, labels_ptr, tokens, width, stride, first, masked,
    temperature, moments_ptr, number, found_ptr,
    STUDENT_FILL: tl.constexpr, TEACHER_FILL: tl.constexpr, STUDENT_BIAS: tl.constexpr, TEACHER_BIAS: tl.constexpr,
    LOGITS: tl.constexpr, POINTWISE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """[2, parts, tokens]: value and slope summed over this program's columns."""
    row, part = tl.program_id(0), tl.program_id(1)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    log_student, log_teacher, _ = _operands(
        student_ptr, teacher_ptr, student_bias_ptr, teacher_bias_ptr, row, tokens, column, inside, stride, masked,
        temperature, moments_ptr + row, STUDENT_FILL, TEACHER_FILL, STUDENT_BIAS, TEACHER_BIAS, LOGITS,
    )  # fmt: skip
    value, slope = POINTWISE(log_student, log_teacher, number)
    out = found_ptr + part * tokens + row
    tl.store(out, tl.sum(tl.where(inside, value, 0.0), axis=0))
    tl.store(out + tl.num_programs(1) * tokens, tl.sum(tl.where(inside, slope, 0.0), axis=0))


@triton.jit(do_not_specialize=SIZES)
def _gradient_kernel(
    student_ptr, teacher_ptr, student_bias_ptr, teacher_bias_ptr, labels_ptr, tokens, width, stride, first, masked,
    temperature, moments_ptr, number, slopes_ptr, task_ptr, prediction_ptr,
    STUDENT_FILL: tl.constexpr, TEACHER_FILL: tl.constexpr, STUDENT_BIAS: tl.constexpr, TEACHER_BIAS: tl.constexpr,
    LOGITS: tl.constexpr, POINTWISE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Student's logits -> task' (p_s - onehot) + prediction' T (g - p_s,T G), rounded once to their dtype."""
    row, part = tl.program_id(0), tl.program_id(1)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    label, task = tl.load(labels_ptr + row), tl.load(task_ptr)
    moments = moments_ptr + row
    log_student, log_teacher, below = _operands(
        student_ptr, teacher_ptr, student_bias_ptr, teacher_bias_ptr, row, tokens, column, inside, stride, masked,
        temperature, moments, STUDENT_FILL, TEACHER_FILL, STUDENT_BIAS, TEACHER_BIAS, LOGITS,
    )  # fmt: skip
    _, slope = POINTWISE(log_student, log_teacher, number)
    if not LOGITS:
        slope -= tl.exp(log_student) * tl.load(slopes_ptr + row)
    slope = slope * (tl.load(prediction_ptr) * temperature) + tl.exp(below) * (task * tl.load(moments + 2 * tokens))
    slope = tl.where(column == label - first, slope - task, slope)
    # the model sets the masked logit, it does not come from the hidden states; ignored tokens may hold nan
    slope = tl.where((column == masked) | (label == -100) | (column >= width), 0.0, slope)
    place = student_ptr + row.to(tl.int64) * stride + column
    tl.store(place, slope.to(student_ptr.dtype.element_ty), mask=column < stride)
