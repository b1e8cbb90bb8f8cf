"""The kernels of masked_mse_triton: one tile of a result per program, float32 inside, no atomic operation.

All matrices are contiguous. `keep` holds 1 for tokens that count, 0 for others, whose student and teacher rows are
never read. Pointers that are None are not used by that launch: Triton compiles one variant per pattern. WIDEN turns
the operands of products into float32 first: for Triton's interpreter, which multiplies bfloat16 by its bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What differs from batch to batch, and places in arrays of numbers for several pairs: a variant for each kind of number
# or address would be compiled in the middle of a run. Widths are the models' own.
SIZES = ("tokens",)
PLACES = ("factor", "partial", "bias_parts")


@triton.jit
def _finish(
    difference, rows, columns, inside, tile, factor, partial, slope,
    bias_parts, width, clamp, CLAMP: tl.constexpr,
):  # fmt: skip
    """Store what is asked for of a tile of differences [ROWS, COLUMNS] that holds 0 where nothing counts."""
    squared = difference * difference
    if CLAMP:  # written so that nan stays nan and is seen in the loss
        clamped = squared >= clamp
        squared = tl.where(clamped, clamp, squared)
        difference = tl.where(clamped, 0.0, difference)
    if partial is not None:
        tl.store(partial + tile, tl.sum(squared))
    if slope is not None:
        scaled = difference
        if factor is not None:
            scaled = difference * tl.load(factor)
        tl.store(slope + rows[:, None] * width + columns[None, :], scaled.to(slope.dtype.element_ty), mask=inside)
        if bias_parts is not None:
            sums = tl.sum(scaled, axis=0)
            tl.store(bias_parts + tl.program_id(0).to(tl.int64) * width + columns, sums, mask=columns < width)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=PLACES)
def projected_error(
    student, weight, bias, teacher, keep, factor, partial, slope,
    bias_parts, tokens, width, depth, clamp,
    CLAMP: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of s W^T + b - t: student [tokens, depth], weight [width, depth], teacher [tokens, width]."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    counts = tl.load(keep + rows, mask=rows < tokens, other=0) != 0
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    steps = tl.where(tl.max(counts.to(tl.int32)) > 0, tl.cdiv(depth, DEPTH), 0)  # a tile of padding: no product
    along = tl.arange(0, DEPTH)
    student += rows[:, None] * depth + along[None, :]
    weight += columns[None, :] * depth + along[:, None]
    product = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for step in range(0, steps):
        left = depth - step * DEPTH
        s = tl.load(student, mask=counts[:, None] & (along[None, :] < left), other=0.0)
        w = tl.load(weight, mask=(columns[None, :] < width) & (along[:, None] < left), other=0.0)
        if WIDEN:
            s, w = s.to(tl.float32), w.to(tl.float32)
        product = tl.dot(s, w, product, input_precision="ieee")
        student += DEPTH
        weight += DEPTH
    if bias is not None:
        product += tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    both = inside & counts[:, None]
    t = tl.load(teacher + rows[:, None] * width + columns[None, :], mask=both, other=0.0).to(tl.float32)
    tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    difference = tl.where(both, product - t, 0.0)
    _finish(difference, rows, columns, inside, tile, factor, partial, slope, bias_parts, width, clamp, CLAMP)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=("factor", "partial"))
def plain_error(
    student, bias, teacher, keep, factor, partial, slope,
    tokens, width, clamp, CLAMP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tile of s + b - t, s and t [tokens, width]; the slope may be written over s."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    counts = tl.load(keep + rows, mask=rows < tokens, other=0) != 0
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    both = inside & counts[:, None]
    at = rows[:, None] * width + columns[None, :]
    s = tl.load(student + at, mask=both, other=0.0).to(tl.float32)
    t = tl.load(teacher + at, mask=both, other=0.0).to(tl.float32)
    if bias is not None:
        s += tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    difference = tl.where(both, s - t, 0.0)
    tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    _finish(difference, rows, columns, inside, tile, factor, partial, slope, None, width, clamp, CLAMP)


@triton.jit(do_not_specialize=SIZES)
def weight_gradient(
    slope, student, keep, before, after, tokens, width, depth,
    WIDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of after = before + slope^T student: [width, depth]; slope [tokens, width], student [tokens, depth]."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < width)[:, None] & (columns < depth)[None, :]
    at = rows[:, None] * depth + columns[None, :]
    product = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for first in range(0, tokens, DEPTH):
        token = first + tl.arange(0, DEPTH).to(tl.int64)
        # a masked token's slope is 0, but 0 times its inf or nan would not be
        counts = tl.load(keep + token, mask=token < tokens, other=0) != 0
        g = tl.load(slope + rows[:, None] + token[None, :] * width,
                    mask=(rows < width)[:, None] & (token < tokens)[None, :], other=0.0)  # fmt: skip
        s = tl.load(student + token[:, None] * depth + columns[None, :],
                    mask=counts[:, None] & (columns < depth)[None, :], other=0.0)  # fmt: skip
        if WIDEN:
            g, s = g.to(tl.float32), s.to(tl.float32)
        product = tl.dot(g, s, product, input_precision="ieee")
    if before is not None:
        product += tl.load(before + at, mask=inside, other=0.0)
    tl.store(after + at, product.to(after.dtype.element_ty), mask=inside)
