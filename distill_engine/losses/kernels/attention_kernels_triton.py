"""The kernels of the fused attention term; `losses.attention_mse_triton` says what they compute and starts them.

Arguments that all functions share: SIZE is a head size, MAIN + TAIL the widths it is read in (TAIL 0: in one piece).
`row` points at one layer's row of a table of int64: for tensors 0..5 (student query and key, teacher query and key, the
gradients of the first two) an address in ADDRESS_UNIT bytes and the strides of example, head and position in
STRIDE_UNIT elements, so that the compiler knows what divides them; then the layer's number and both scales.
EQUAL: student and teacher have the same scale in every layer.

Rows that take part in no pair are read as 0 from both models, so their differences are 0: only the diagonal of a causal
score is masked afterwards.
"""

import triton
import triton.language as tl

TABLE_ROW = tl.constexpr(28)
LAYER_NUMBER = tl.constexpr(24)
STUDENT_SCALE = tl.constexpr(25)
TEACHER_SCALE = tl.constexpr(26)
# Batches differ in these: a variant for each kind of number would be compiled in the middle of a run.
SIZES = ("examples", "heads", "queries", "keys")
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _head(row, number, example, head, TYPE: tl.constexpr, ADDRESS_UNIT: tl.constexpr, STRIDE_UNIT: tl.constexpr):
    """Pointer to one head of tensor `number` of a layer, and its stride from one position to the next (int64)."""
    entry = row + 4 * number
    pointer = tl.multiple_of((tl.load(entry) * ADDRESS_UNIT).to(tl.pointer_type(TYPE)), ADDRESS_UNIT)
    offset = tl.load(entry + 1) * example + tl.load(entry + 2) * head
    return pointer + offset * STRIDE_UNIT, tl.load(entry + 3) * STRIDE_UNIT


@triton.jit
def _places(pointer, stride, start, BLOCK: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Pointers [BLOCK, WIDTH] to elements FIRST.. of positions start..; 64 bits up to the tile, 32 inside."""
    inside = tl.arange(0, BLOCK)[:, None] * stride.to(tl.int32) + (FIRST + tl.arange(0, WIDTH))[None, :]
    return pointer + start * stride + inside


@triton.jit
def _inside(keep, FIRST: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """Mask of a piece: rows that are kept and, in the last piece, elements that exist."""
    mask = keep[:, None]
    if FIRST + WIDTH > SIZE:
        mask = mask & (FIRST + tl.arange(0, WIDTH) < SIZE)[None, :]
    return mask


@triton.jit
def _pieces(
    pointer, stride, start, keep,
    BLOCK: tl.constexpr, SIZE: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Both pieces of BLOCK rows; rows that are not kept read as 0, so what they hold cannot matter."""
    main = tl.load(_places(pointer, stride, start, BLOCK, 0, MAIN), mask=_inside(keep, 0, MAIN, SIZE), other=0.0)
    tail = main
    if TAIL > 0:
        tail = tl.load(
            _places(pointer, stride, start, BLOCK, MAIN, TAIL), mask=_inside(keep, MAIN, TAIL, SIZE), other=0.0
        )
    return main, tail


@triton.jit
def _factor(x):
    """A factor of a product as the hardware takes it; Triton's interpreter would multiply the bits of a bfloat16."""
    return x.to(tl.float32 if INTERPRETED and x.dtype == tl.bfloat16 else x.dtype)


@triton.jit
def _product(x_main, x_tail, y_main, y_tail, TAIL: tl.constexpr):
    """x y^T, float32 and exact to it."""
    scores = tl.dot(_factor(x_main), tl.trans(_factor(y_main)), input_precision="ieee")
    if TAIL > 0:
        scores = tl.dot(_factor(x_tail), tl.trans(_factor(y_tail)), scores, input_precision="ieee")
    return scores


@triton.jit
def _taken_away(x, EQUAL: tl.constexpr):
    """The teacher's factor as `_difference` wants it."""
    return -x if EQUAL else x


@triton.jit
def _difference(
    x_s0, x_s1, x_t0, x_t1, y_s0, y_s1, y_t0, y_t1, scale_s, scale_t,
    TAIL_S: tl.constexpr, TAIL_T: tl.constexpr, EQUAL: tl.constexpr,
):  # fmt: skip
    """Differences of scores; where scales are equal both models' products share an accumulator (see `_taken_away`)."""
    scores = _product(x_s0, x_s1, y_s0, y_s1, TAIL_S)
    if EQUAL:
        scores = tl.dot(_factor(x_t0), tl.trans(_factor(y_t0)), scores, input_precision="ieee")
        if TAIL_T > 0:
            scores = tl.dot(_factor(x_t1), tl.trans(_factor(y_t1)), scores, input_precision="ieee")
        scores = scores * scale_s
    else:
        scores = scores * scale_s - _product(x_t0, x_t1, y_t0, y_t1, TAIL_T) * scale_t
    return scores


@triton.jit
def _scale(row, number):
    """A float32 that lies in the table as its bits."""
    return tl.load(row + number).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    table, keep, ends, partials,
    examples, heads, queries, keys, clamp,
    TYPE_S: tl.constexpr, SIZE_S: tl.constexpr, MAIN_S: tl.constexpr, TAIL_S: tl.constexpr,
    TYPE_T: tl.constexpr, SIZE_T: tl.constexpr, MAIN_T: tl.constexpr, TAIL_T: tl.constexpr,
    ADDRESS_UNIT: tl.constexpr, STRIDE_UNIT: tl.constexpr,
    CAUSAL: tl.constexpr, CLAMP: tl.constexpr, EQUAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """partials[program] = sum of clamped squared differences of BLOCK_ROWS queries against all keys of one head."""
    tiles = tl.cdiv(queries, BLOCK_ROWS)
    program = tl.program_id(0)
    tile, which = program % tiles, program // tiles
    head, example, row = which % heads, (which // heads) % examples, table + (which // heads // examples) * TABLE_ROW
    first_row = tile * BLOCK_ROWS
    rows = first_row + tl.arange(0, BLOCK_ROWS)
    keep += example.to(tl.int64) * (queries + keys)
    keep_rows = tl.load(keep + rows, mask=rows < queries, other=0) != 0
    end = tl.where(first_row < tl.load(ends + 2 * example), tl.load(ends + 2 * example + 1), 0)
    if CAUSAL:
        end = tl.minimum(end, first_row + BLOCK_ROWS)

    scale_s, scale_t = _scale(row, STUDENT_SCALE), _scale(row, TEACHER_SCALE)
    x_s, step_s = _head(row, 0, example, head, TYPE_S, ADDRESS_UNIT, STRIDE_UNIT)
    x_t, step_t = _head(row, 2, example, head, TYPE_T, ADDRESS_UNIT, STRIDE_UNIT)
    y_s, jump_s = _head(row, 1, example, head, TYPE_S, ADDRESS_UNIT, STRIDE_UNIT)
    y_t, jump_t = _head(row, 3, example, head, TYPE_T, ADDRESS_UNIT, STRIDE_UNIT)
    x_s0, x_s1 = _pieces(x_s, step_s, first_row, keep_rows, BLOCK_ROWS, SIZE_S, MAIN_S, TAIL_S)
    x_t0, x_t1 = _pieces(x_t, step_t, first_row, keep_rows, BLOCK_ROWS, SIZE_T, MAIN_T, TAIL_T)
    x_t0, x_t1 = _taken_away(x_t0, EQUAL), _taken_away(x_t1, EQUAL)

    total = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    for start in range(0, end, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        keep_columns = tl.load(keep + queries + columns, mask=columns < keys, other=0) != 0
        y_s0, y_s1 = _pieces(y_s, jump_s, start, keep_columns, BLOCK_COLUMNS, SIZE_S, MAIN_S, TAIL_S)
        y_t0, y_t1 = _pieces(y_t, jump_t, start, keep_columns, BLOCK_COLUMNS, SIZE_T, MAIN_T, TAIL_T)
        difference = _difference(
            x_s0, x_s1, x_t0, x_t1, y_s0, y_s1, y_t0, y_t1, scale_s, scale_t, TAIL_S, TAIL_T, EQUAL
        )
        squared = difference * difference
        if CAUSAL:
            squared = tl.where(columns[None, :] <= rows[:, None], squared, 0.0)
        if CLAMP:
            squared = tl.where(squared > clamp, clamp, squared)  # unlike a minimum, keeps nan
        total += tl.sum(squared, axis=1)
    tl.store(partials + program, tl.sum(total, axis=0))


@triton.jit
def _peaks(weight, TYPE: tl.constexpr):
    """Largest absolute value of each row, by which float16 wants it divided; 1 for types with float32's range."""
    if TYPE == tl.float16:
        peak = tl.max(tl.abs(weight), axis=1)
        peak = tl.where(peak > 1e-30, peak, 1.0)  # below, 1 / peak would overflow
    else:
        peak = tl.full([weight.shape[0]], 1.0, dtype=tl.float32)
    return peak


@triton.jit
def _store(
    value, keep, pointer, stride, start, exists, TYPE: tl.constexpr,
    BLOCK: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A piece of BLOCK rows of a gradient; rows that are not kept get 0."""
    places = _places(pointer, stride, start, BLOCK, FIRST, WIDTH)
    tl.store(places, tl.where(keep[:, None], value, 0.0).to(TYPE), mask=_inside(exists, FIRST, WIDTH, SIZE))


@triton.jit
def _add_product(total, weight, peak, y, TYPE: tl.constexpr):
    """total + (peak * weight) y, where half-precision weights are two numbers: what is rounded off goes second."""
    if TYPE == tl.float32:
        total = tl.dot(weight, y, total, input_precision="ieee")
    else:
        high = weight.to(TYPE)
        low = _factor((weight - high.to(tl.float32)).to(TYPE))
        high, y = _factor(high), _factor(y)
        if TYPE == tl.bfloat16:  # has float32's range
            total = tl.dot(low, y, tl.dot(high, y, total))
        else:
            total += tl.dot(low, y, tl.dot(high, y)) * peak[:, None]
    return total


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    table, keep, ends, upstream,
    examples, heads, queries, keys, clamp,
    TYPE_S: tl.constexpr, SIZE_S: tl.constexpr, MAIN_S: tl.constexpr, TAIL_S: tl.constexpr,
    TYPE_T: tl.constexpr, SIZE_T: tl.constexpr, MAIN_T: tl.constexpr, TAIL_T: tl.constexpr,
    ADDRESS_UNIT: tl.constexpr, STRIDE_UNIT: tl.constexpr,
    CAUSAL: tl.constexpr, CLAMP: tl.constexpr, EQUAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """BLOCK_ROWS rows of dq (role 0: rows are queries) or of dk (role 1: rows are keys) of one layer and head."""
    query_tiles = tl.cdiv(queries, BLOCK_ROWS)
    tiles = query_tiles + tl.cdiv(keys, BLOCK_ROWS)
    program = tl.program_id(0)
    tile, which = program % tiles, program // tiles
    head, example, row = which % heads, (which // heads) % examples, table + (which // heads // examples) * TABLE_ROW
    role = (tile >= query_tiles).to(tl.int32)
    first_row = (tile - role * query_tiles) * BLOCK_ROWS
    row_count = tl.where(role == 0, queries, keys)
    column_count = queries + keys - row_count
    rows = first_row + tl.arange(0, BLOCK_ROWS)
    keep += example.to(tl.int64) * (queries + keys)
    keep_of_columns = keep + (1 - role) * queries
    keep_rows = tl.load(keep + role * queries + rows, mask=rows < row_count, other=0) != 0
    ends += 2 * example
    begin, end = 0 * role, tl.where(first_row < tl.load(ends + role), tl.load(ends + 1 - role), 0)
    if CAUSAL:  # a query sees keys up to itself, a key is seen by queries from itself on
        begin = role * (first_row // BLOCK_COLUMNS * BLOCK_COLUMNS)
        end = tl.where(role == 0, tl.minimum(end, first_row + BLOCK_ROWS), end)

    scale_s, scale_t = _scale(row, STUDENT_SCALE), _scale(row, TEACHER_SCALE)
    x_s, step_s = _head(row, role, example, head, TYPE_S, ADDRESS_UNIT, STRIDE_UNIT)
    x_t, step_t = _head(row, 2 + role, example, head, TYPE_T, ADDRESS_UNIT, STRIDE_UNIT)
    y_s, jump_s = _head(row, 1 - role, example, head, TYPE_S, ADDRESS_UNIT, STRIDE_UNIT)
    y_t, jump_t = _head(row, 3 - role, example, head, TYPE_T, ADDRESS_UNIT, STRIDE_UNIT)
    x_s0, x_s1 = _pieces(x_s, step_s, first_row, keep_rows, BLOCK_ROWS, SIZE_S, MAIN_S, TAIL_S)
    x_t0, x_t1 = _pieces(x_t, step_t, first_row, keep_rows, BLOCK_ROWS, SIZE_T, MAIN_T, TAIL_T)
    x_t0, x_t1 = _taken_away(x_t0, EQUAL), _taken_away(x_t1, EQUAL)

    sum_main = tl.zeros([BLOCK_ROWS, MAIN_S], dtype=tl.float32)
    sum_tail = tl.zeros([BLOCK_ROWS, TAIL_S if TAIL_S > 0 else 16], dtype=tl.float32)
    for start in range(begin, end, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        keep_columns = tl.load(keep_of_columns + columns, mask=columns < column_count, other=0) != 0
        y_s0, y_s1 = _pieces(y_s, jump_s, start, keep_columns, BLOCK_COLUMNS, SIZE_S, MAIN_S, TAIL_S)
        y_t0, y_t1 = _pieces(y_t, jump_t, start, keep_columns, BLOCK_COLUMNS, SIZE_T, MAIN_T, TAIL_T)
        difference = _difference(
            x_s0, x_s1, x_t0, x_t1, y_s0, y_s1, y_t0, y_t1, scale_s, scale_t, TAIL_S, TAIL_T, EQUAL
        )
        if CAUSAL:
            seen = (rows[:, None] - columns[None, :]) * (1 - 2 * role) >= 0
            difference = tl.where(seen, difference, 0.0)
        if CLAMP:
            difference = tl.where(difference * difference >= clamp, 0.0, difference)  # a clamped pair learns nothing
        peak = _peaks(difference, TYPE_S)
        difference = difference * (1.0 / peak)[:, None]
        sum_main = _add_product(sum_main, difference, peak, y_s0, TYPE_S)
        if TAIL_S > 0:
            sum_tail = _add_product(sum_tail, difference, peak, y_s1, TYPE_S)

    factor = tl.load(upstream + tl.load(row + LAYER_NUMBER)) * (2.0 * scale_s / heads)
    out, step = _head(row, 4 + role, example, head, TYPE_S, ADDRESS_UNIT, STRIDE_UNIT)
    exists = rows < row_count
    _store(sum_main * factor, keep_rows, out, step, first_row, exists, TYPE_S, BLOCK_ROWS, 0, MAIN_S, SIZE_S)
    if TAIL_S > 0:
        _store(sum_tail * factor, keep_rows, out, step, first_row, exists, TYPE_S, BLOCK_ROWS, MAIN_S, TAIL_S, SIZE_S)
