"""Projection and masked squared error together in Triton kernels; formulas and signature as in masked_mse_chunked.

    forward    one launch over tiles of [tokens, D]: p = s W^T + b in registers, then its difference, square, sum.
               Only one float32 per tile reaches memory.
    backward   per chunk of tokens: the same tiles again, which now store f G, [tokens of the chunk, D], in the
               student's dtype; then dstudent = (f G) W and dW += (f G)^T student. db comes from the tiles directly.

G is formed a second time, a fourth product beside the three. The alternative, gradients of the forward pass kept until
the backward pass, would have to keep them in float32 (a loss scale still to come would not bring back what fp16 has
lost): 4 (tokens Ds + D Ds) bytes for every compared layer, alive as long as the difference would have been. With 2048
tokens, D = 2560 and Ds = 1280 these are 24 MB per layer, and writing and reading them, 47 MB, takes an H100 most of
the time of the product that they save (13 GFLOP). Eager PyTorch moves 490 MB there, these kernels 100 MB, of which
the slopes (32 MB) stay in the second-level cache.

Extra memory: the slopes of one chunk of tokens and, where there is more than one chunk and W is not float32, one
float32 copy of W's shape, because sums over chunks may not be rounded in between. Where that copy would be larger than
the slopes that chunks save, all tokens are one chunk: at most 2 bytes per token and output in half precision, a seventh
of what eager PyTorch holds. All of it is gone after the call.

p stays in the float32 accumulators: unlike nn.Linear, it is not rounded to the model's dtype before the difference.
Every tile is one program's own and partial sums are added in a fixed order: the same inputs give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_engine.losses.kernels.half_products import unrounded
from distill_engine.losses.kernels.masked_mse import kept_rows
from distill_engine.losses.kernels.masked_mse_chunked import check_projection
from distill_engine.losses.kernels.masked_mse_launches_triton import (
    PLAIN_COLUMNS,
    PLAIN_ROWS,
    Inputs,
    launch_plain,
    launch_projected,
    launch_weight_gradient,
    pairs_of,
    tiles_of,
)
from distill_engine.losses.kernels.masked_mse_library_triton import LibraryErrors
from distill_engine.losses.kernels.projection_ways import Way, faster_way

# Elements of f G that exist at a time where tokens come in chunks: 4 MB in fp16. In tiles of 128 x 128 these are 128
# programs, one for nearly every multiprocessor of an H100 (132), and W is read once per chunk.
CHUNK_ELEMENTS = 2**21
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def projected_mse_sum(
    student: Tensor, weight: Tensor | None, bias: Tensor | None, teacher: Tensor, mask: Tensor, clamp: float | None
) -> Tensor:
    """Sum over unmasked tokens of the mean squared difference between the projected student and the teacher.

    student   [B, L, Ds] float32, float16 or bfloat16
    weight    [D, Ds] in the student's dtype, or None where Ds == D
    bias      [D] or None
    teacher   [B, L, D], any float dtype; gets no gradient
    mask      [B, L] bool, True where a token counts; elsewhere student and teacher may hold inf or nan
    clamp     largest squared difference of one element, or None; a clamped element has derivative 0
    returns   [] float32; gradients reach student, weight and bias, those that ask for them

    Raises ValueError where shapes do not fit, student and weight differ in dtype, or no kernel runs on the device.
    """
    return projected_mse_sums([(student, weight, bias)], [teacher], mask, clamp).squeeze(0)


def projected_mse_sums(
    students: Sequence[tuple[Tensor, Tensor | None, Tensor | None]],
    teachers: Sequence[Tensor],
    mask: Tensor,
    clamp: float | None,
    way: Way | None = None,
) -> Tensor:
    """[pairs] float32: the same for pairs of one shape and one mask (layers of a stack); what is small is done once.

    students  states, weight and bias of each pair
    way       who forms the products of a projection; None: by count (`projection_ways`)
    Raises ValueError as well where pairs differ in shape, or some have a weight or bias and others have none.
    """
    flat: list[Tensor | None] = []
    for (student, weight, bias), teacher in zip(students, teachers, strict=True):
        check_projection(student, weight, bias, teacher, mask)
        _check_kernel(student, weight)
        flat += [student, weight, bias, teacher]
    shapes = {tuple(None if part is None else part.shape for part in flat[i : i + 4]) for i in range(0, len(flat), 4)}
    if len(shapes) > 1:
        raise ValueError(
            f"masked squared error: pairs of one call have one shape, these have {sorted(map(str, shapes))}. "
            "Compare layers of one width at a time."
        )
    if students[0][1] is not None and (way or _way(*students[0][:2], mask)) == "library":
        summed: Tensor = LibraryErrors.apply(clamp, mask, *flat)
        return summed
    total: Tensor = _ProjectedErrors.apply(clamp, mask, *flat)
    return total


def _way(student: Tensor, weight: Tensor | None, mask: Tensor) -> Way:
    """By count, where this PyTorch can form products for the library's way."""
    half = weight is not None and student.is_cuda and student.dtype != torch.float32
    if weight is None or not half or not unrounded(student.device, student.dtype):
        return "kernels"
    return faster_way(mask.numel(), weight.shape[1], weight.shape[0])


def _check_kernel(student: Tensor, weight: Tensor | None) -> None:
    if not (student.is_cuda or triton.knobs.runtime.interpret):
        raise ValueError(
            f"masked squared error: the student's hidden states are on {student.device}; the kernels run on CUDA "
            "devices. Use the chunked path, or set TRITON_INTERPRET=1 before triton is imported."
        )
    dtypes = {x.dtype for x in (student, weight) if x is not None}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise ValueError(
            f"masked squared error: the student's hidden states are {student.dtype}, the projection "
            f"{None if weight is None else weight.dtype}. The kernel multiplies two float16, bfloat16 or float32 "
            "matrices of one dtype; train the projections in the student's precision."
        )


class _ProjectedErrors(torch.autograd.Function):
    """Keeps references to its inputs only, and the mask as the kernels read it."""

    @staticmethod
    def forward(ctx: Any, clamp: float | None, mask: Tensor, *tensors: Tensor | None) -> Tensor:
        keep = kept_rows(mask)
        ctx.save_for_backward(keep, *tensors)
        ctx.clamp = clamp
        with torch.cuda.device_of(mask):
            pairs = pairs_of(keep, tensors)
            grid = _grid(pairs[0])
            partial = torch.empty((len(pairs), *grid), dtype=torch.float32, device=mask.device)
            launch = launch_plain if pairs[0].weight is None else launch_projected
            for inputs, own in zip(pairs, partial, strict=True):
                launch(grid, inputs, clamp, partial=own)
        return partial.flatten(1).sum(dim=1) / pairs[0].teacher.shape[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        keep, *tensors = ctx.saved_tensors
        with torch.cuda.device_of(keep):
            pairs = pairs_of(keep, tensors)
            factors = upstream.float() * (2.0 / pairs[0].teacher.shape[-1])
            wanted = [ctx.needs_input_grad[first : first + 3] for first in range(2, len(ctx.needs_input_grad), 4)]
            parts = _bias_parts(pairs, wanted)
            found: list[Tensor | None] = []
            for number, inputs in enumerate(pairs):
                factor, student = factors[number], tensors[4 * number]
                own = None if parts is None else parts[number]
                of_student, of_weight = _gradients(inputs, ctx.clamp, factor, wanted[number], own)
                found += [None if of_student is None else of_student.view(student.shape), of_weight, None, None]
            if parts is not None:
                of_bias = parts.sum(dim=1).to(tensors[2].dtype)
                found[2::4] = [one if asked[2] else None for one, asked in zip(of_bias, wanted, strict=True)]
        return None, None, *found


def _bias_parts(pairs: Sequence[Inputs], wanted: Sequence[Sequence[bool]]) -> Tensor | None:
    """[pairs, row tiles, D] float32, column sums of f G to come; None where no bias asks for a gradient."""
    first = pairs[0]
    if first.weight is None or first.bias is None or not any(asked[2] for asked in wanted):
        return None
    (tokens, width), rows = first.teacher.shape, tiles_of(first.student.dtype).rows
    return first.weight.new_empty((len(pairs), triton.cdiv(tokens, rows), width), dtype=torch.float32)


def _grid(inputs: Inputs) -> tuple[int, int]:
    """Tiles of tokens and columns of one pair."""
    tokens, width = inputs.teacher.shape
    if inputs.weight is None:
        return triton.cdiv(tokens, PLAIN_ROWS), triton.cdiv(width, PLAIN_COLUMNS)
    tiles = tiles_of(inputs.student.dtype)
    return triton.cdiv(tokens, tiles.rows), triton.cdiv(width, tiles.columns)


def _plain_gradient(inputs: Inputs, clamp: float | None, factor: Tensor) -> Tensor:
    """[N, D]: f G in the student's dtype."""
    slope = torch.empty_like(inputs.student)
    launch_plain(_grid(inputs), inputs, clamp, slope=slope, factor=factor)
    return slope


def _gradients(
    inputs: Inputs, clamp: float | None, factor: Tensor, wanted: Sequence[bool], parts: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of student [N, Ds] and weight, each None unless wanted, one chunk of tokens at a time; fills `parts`,
    the bias's by rows of tiles."""
    student, weight, _, teacher, _ = inputs
    if weight is None:
        return _plain_gradient(inputs, clamp, factor), None
    (tokens, width), tiles = teacher.shape, tiles_of(student.dtype)
    sums = 4 * weight.numel() // weight.itemsize if wanted[1] and weight.dtype != torch.float32 else 0
    step = chunk_tokens(tokens, width, tiles.rows, sums)
    slope = student.new_empty(min(step, tokens), width)
    of_student = torch.empty_like(student) if wanted[0] else None
    of_weight = _WeightGradient(weight, chunks=triton.cdiv(tokens, step)) if wanted[1] else None
    for first in range(0, tokens, step):
        part = inputs.rows(first, first + step)
        count = part.teacher.shape[0]
        own = None if parts is None else parts[first // tiles.rows :]
        launch_projected(_grid(part), part, clamp, slope=slope, factor=factor, bias_parts=own)
        if of_student is not None:
            torch.mm(slope[:count], weight, out=of_student[first : first + count])
        if of_weight is not None:
            of_weight.add(slope, part)
    return of_student, None if of_weight is None else of_weight.result


class _WeightGradient:
    """Sums over chunks in float32; the last chunk's launch rounds, so one chunk needs no float32 copy at all."""

    def __init__(self, weight: Tensor, chunks: int) -> None:
        self.result = torch.empty_like(weight) if chunks else torch.zeros_like(weight)
        whole = weight.dtype == torch.float32 or chunks <= 1
        self._sums = self.result if whole else torch.empty_like(weight, dtype=torch.float32)
        self._done, self._chunks = 0, chunks

    def add(self, slope: Tensor, part: Inputs) -> None:
        """Add slope^T student of the next chunk; after the last one `result` is ready."""
        before = self._sums if self._done else None
        self._done += 1
        launch_weight_gradient(slope, part, before, self.result if self._done == self._chunks else self._sums)


def chunk_tokens(tokens: int, width: int, multiple: int, sums: int) -> int:
    """Tokens whose slope exists at a time: chunks of equal size but the last, each a multiple of the tile's rows.

    sums  what adding up chunks takes, counted in elements of the slope: one chunk where that would take less
    """
    least = max(triton.cdiv(tokens, multiple), 1) * multiple
    if tokens * width <= CHUNK_ELEMENTS + sums:
        return least
    most = max(CHUNK_ELEMENTS // (width * multiple), 1) * multiple
    chunks = triton.cdiv(tokens, most)
    return max(triton.cdiv(triton.cdiv(tokens, chunks), multiple), 1) * multiple
