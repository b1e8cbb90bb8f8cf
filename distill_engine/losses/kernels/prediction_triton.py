"""Task and prediction from hidden states on a GPU: the pointwise work of `prediction_blocks` in two Triton kernels.

One program takes one token and up to 4096 vocabulary ids of a block, both models, in one read: bias, masked column,
maxima, sums of exponentials and the cross sum come out of registers. The second kernel writes the gradient over the
student's logits. No atomics; every program writes its own place, so equal inputs give equal bits.

The device is never waited for: tokens without a label are computed along and count for nothing.

Bytes per logit of both models in fp16: 4 read by the sums; 4 read and 2 written by the gradient. Between the
matrix products nothing else is as large as a block.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from distill_engine.losses.kernels.prediction_divergence import InTorch
from distill_engine.losses.kernels.prediction_tokens import SUMS, LogitBlock, masked_value

_MOST_COLUMNS = 4096
_COLUMNS_PER_WARP = 512
# Blocks and batches differ in these: a variant for each kind of number would be compiled in the middle of a run.
SIZES = ("tokens", "width", "first", "masked")


class TritonPointwise(InTorch):
    """See `prediction_blocks.Pointwise`."""

    compact = False

    def sums(self, block: LogitBlock) -> Tensor:
        """One part per program."""
        tokens, (each, parts) = len(block.labels), columns(block)
        found = block.student.new_empty(len(SUMS), parts, tokens, dtype=torch.float32)
        if tokens:
            with on(block.student):
                _sums_kernel[(tokens, parts)](*inputs(block), found, **constants(block, each))
        return found

    def gradient_(self, block: LogitBlock, moments: Tensor, task: Tensor, prediction: Tensor) -> None:
        """The upstream factors stay on the device."""
        tokens, (each, parts) = len(block.labels), columns(block)
        if tokens:
            with on(block.student):
                _gradient_kernel[(tokens, parts)](
                    *inputs(block), moments, task.float(), prediction.float(), **constants(block, each)
                )


def columns(block: LogitBlock) -> tuple[int, int]:
    """Columns of one program, and programs per token."""
    width = block.student.shape[1]
    each = min(_MOST_COLUMNS, triton.next_power_of_2(width))
    return each, triton.cdiv(width, each)


def inputs(block: LogitBlock) -> tuple[object, ...]:
    """Arguments that both kernels share; what is absent is stood in for and never read."""
    student = block.student
    teacher = student if block.teacher is None else block.teacher
    biases = [student if bias is None else bias for bias in (block.student_bias, block.teacher_bias)]
    masked = -1 if block.masked is None else block.masked
    sizes = (len(block.labels), student.shape[1], student.stride(0))
    return student, teacher, *biases, block.labels, *sizes, block.first, masked, block.temperature


def constants(block: LogitBlock, each: int) -> dict[str, object]:
    teacher = block.student if block.teacher is None else block.teacher
    return {
        "STUDENT_FILL": masked_value(block.student.dtype),
        "TEACHER_FILL": masked_value(teacher.dtype),
        "STUDENT_BIAS": block.student_bias is not None,
        "TEACHER_BIAS": block.teacher_bias is not None,
        "TEACHER": block.teacher is not None,
        "TEMPERED": block.temperature != 1.0,
        "COLUMNS": each,
        "num_warps": max(1, each // _COLUMNS_PER_WARP),
    }


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """Kernels start on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


# ---- kernels ---------------------------------------------------------------------------------------------------------


@triton.jit
def logits(
    base: tl.tensor, bias: tl.tensor, row: tl.tensor, stride: tl.tensor, column: tl.tensor, inside: tl.tensor,
    masked: tl.tensor, BIAS: tl.constexpr, FILL: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """One token's logits as its model gives them, float32, -inf outside the block: the bias is added and the masked
    column set in the model's own dtype.

    Rows are read to their end: the stride is a multiple of 16 where the width need not be, which keeps loads wide.
    """
    raw = tl.load(base + row.to(tl.int64) * stride + column, mask=column < stride, other=0.0)
    if BIAS:
        added = tl.load(bias + column, mask=inside, other=0.0)
        raw = (raw.to(tl.float32) + added.to(tl.float32)).to(base.dtype.element_ty)
    value = tl.where(column == masked, FILL, raw.to(tl.float32))
    return tl.where(inside, value, float("-inf"))


@triton.jit
def _first(logits: tl.tensor, maximum: tl.tensor, column: tl.tensor) -> tl.tensor:
    """Lowest column that holds the maximum."""
    return tl.min(tl.where(logits == maximum, column, 2147483647), axis=0)


@triton.jit(do_not_specialize=SIZES)
def _sums_kernel(
    student_ptr: tl.tensor, teacher_ptr: tl.tensor, student_bias_ptr: tl.tensor, teacher_bias_ptr: tl.tensor,
    labels_ptr: tl.tensor, tokens: tl.tensor, width: tl.tensor, stride: tl.tensor, first: tl.tensor,
    masked: tl.tensor, temperature: tl.tensor,
    found_ptr: tl.tensor,
    STUDENT_FILL: tl.constexpr, TEACHER_FILL: tl.constexpr, STUDENT_BIAS: tl.constexpr, TEACHER_BIAS: tl.constexpr,
    TEACHER: tl.constexpr, TEMPERED: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """[9, parts, tokens] of SUMS."""
    row, part = tl.program_id(0), tl.program_id(1)
    step = tl.num_programs(1) * tokens  # from one row of SUMS to the next
    out = found_ptr + part * tokens + row
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    label = tl.load(labels_ptr + row) - first
    student = logits(student_ptr, student_bias_ptr, row, stride, column, inside, masked, STUDENT_BIAS, STUDENT_FILL)
    student_max = tl.max(student, axis=0)
    tl.store(out, student_max)
    tl.store(out + 3 * step, (_first(student, student_max, column) + first).to(tl.float32))
    tl.store(out + 4 * step, tl.sum(tl.where(inside & (column == label), student, 0.0), axis=0))
    student -= student_max
    powers = tl.exp(student)
    student_sum = tl.sum(powers, axis=0)
    tl.store(out + step, student_sum)
    if TEACHER:
        teacher = logits(teacher_ptr, teacher_bias_ptr, row, stride, column, inside, masked, TEACHER_BIAS, TEACHER_FILL)
        teacher_max = tl.max(teacher, axis=0)
        tl.store(out + 5 * step, teacher_max)
        tl.store(out + 7 * step, (_first(teacher, teacher_max, column) + first).to(tl.float32))
        teacher -= teacher_max
        if TEMPERED:
            student /= temperature
            teacher /= temperature
            student_sum = tl.sum(tl.exp(student), axis=0)
        tl.store(out + 2 * step, student_sum)
        powers = tl.exp(teacher)
        tl.store(out + 6 * step, tl.sum(powers, axis=0))
        tl.store(out + 8 * step, tl.sum(tl.where(inside, powers * (teacher - student), 0.0), axis=0))
    else:
        tl.store(out + 2 * step, student_sum)
        for empty in tl.static_range(5, 9):
            tl.store(out + empty * step, 0.0)


@triton.jit(do_not_specialize=SIZES)
def _gradient_kernel(
    student_ptr: tl.tensor, teacher_ptr: tl.tensor, student_bias_ptr: tl.tensor, teacher_bias_ptr: tl.tensor,
    labels_ptr: tl.tensor, tokens: tl.tensor, width: tl.tensor, stride: tl.tensor, first: tl.tensor,
    masked: tl.tensor, temperature: tl.tensor,
    moments_ptr: tl.tensor, task_ptr: tl.tensor, prediction_ptr: tl.tensor,
    STUDENT_FILL: tl.constexpr, TEACHER_FILL: tl.constexpr, STUDENT_BIAS: tl.constexpr, TEACHER_BIAS: tl.constexpr,
    TEACHER: tl.constexpr, TEMPERED: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Student's logits -> task' (p_s - onehot) + prediction' T (p_s,T - p_t,T), rounded once to their dtype."""
    row, part = tl.program_id(0), tl.program_id(1)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    label = tl.load(labels_ptr + row)
    task = tl.load(task_ptr).to(tl.float32)
    prediction = tl.load(prediction_ptr).to(tl.float32) * temperature
    moments = moments_ptr + row
    student = logits(student_ptr, student_bias_ptr, row, stride, column, inside, masked, STUDENT_BIAS, STUDENT_FILL)
    student -= tl.load(moments)
    own = task * tl.load(moments + 2 * tokens)
    if TEACHER:
        teacher = logits(teacher_ptr, teacher_bias_ptr, row, stride, column, inside, masked, TEACHER_BIAS, TEACHER_FILL)
        teacher -= tl.load(moments + tokens)
        tempered = prediction * tl.load(moments + 3 * tokens)
        teachers = prediction * tl.load(moments + 4 * tokens)
        if TEMPERED:
            slope = own * tl.exp(student) + tempered * tl.exp(student / temperature)
            slope -= teachers * tl.exp(teacher / temperature)
        else:
            slope = (own + tempered) * tl.exp(student) - teachers * tl.exp(teacher)
    else:
        slope = own * tl.exp(student)
    slope = tl.where(column == label - first, slope - task, slope)
    # the model sets the masked logit, it does not come from the hidden states; ignored tokens may hold nan
    slope = tl.where((column == masked) | (label == -100), 0.0, slope)
    place = student_ptr + row.to(tl.int64) * stride + column
    tl.store(place, slope.to(student_ptr.dtype.element_ty), mask=column < stride)
