"""Starts the kernels of masked_mse_kernels_triton: block sizes, and inputs as these read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from distill_engine.losses.kernels.masked_mse_kernels_triton import plain_error, projected_error, weight_gradient
from distill_engine.losses.kernels.occupancy import register_limit_on


class Tiles(NamedTuple):
    """Block sizes and launch options of the kernels with products."""

    rows: int  # of the result
    columns: int
    depth: int  # of one product's step
    num_warps: int
    num_stages: int


HALF_TILES = Tiles(rows=128, columns=128, depth=64, num_warps=8, num_stages=3)
# Which tokens count decides what the product of dW loads: that chain takes two of the stages. Both factors are read
# across tokens; in wider tiles their addresses would leave no registers for a second block.
HALF_GRADIENT_TILES = HALF_TILES._replace(columns=64, num_stages=5)
# IEEE float32 products run on no tensor core and take registers for both operands
FLOAT_TILES = Tiles(rows=64, columns=64, depth=16, num_warps=8, num_stages=2)
PLAIN_ROWS, PLAIN_COLUMNS, PLAIN_WARPS = 16, 256, 4


class Inputs(NamedTuple):
    """Flat and contiguous: student [N, Ds], weight [D, Ds], bias [D], teacher [N, D], keep [N] int32."""

    student: Tensor
    weight: Tensor | None
    bias: Tensor | None
    teacher: Tensor
    keep: Tensor

    def rows(self, first: int, last: int) -> Inputs:
        """The same for some tokens."""
        part = slice(first, last)
        return self._replace(student=self.student[part], teacher=self.teacher[part], keep=self.keep[part])


def _flat(tensors: Sequence[Tensor | None], keep: Tensor) -> Inputs:
    """Copies only what is not contiguous."""
    student, weight, bias, teacher = tensors
    assert student is not None and teacher is not None
    return Inputs(
        student.flatten(0, -2).contiguous(),
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        teacher.flatten(0, -2).contiguous(),
        keep,
    )


def pairs_of(keep: Tensor, tensors: Sequence[Tensor | None]) -> list[Inputs]:
    """From student, weight, bias, teacher of each pair, one after the other."""
    return [_flat(tensors[first : first + 4], keep) for first in range(0, len(tensors), 4)]


def tiles_of(dtype: torch.dtype, half: Tiles = HALF_TILES) -> Tiles:
    """`half`: where products run on tensor cores."""
    return FLOAT_TILES if dtype == torch.float32 else half


def launch_projected(
    grid: tuple[int, int],
    inputs: Inputs,
    clamp: float | None,
    *,
    partial: Tensor | None = None,
    slope: Tensor | None = None,
    factor: Tensor | None = None,
    bias_parts: Tensor | None = None,
) -> None:
    """Fill `partial` (sum per tile), or `slope` (f G) and `bias_parts` (column sums of f G per row of tiles)."""
    if 0 in grid:
        return
    tiles = tiles_of(inputs.student.dtype)
    projected_error[grid](
        inputs.student, inputs.weight, inputs.bias, inputs.teacher, inputs.keep, factor, partial, slope, bias_parts,
        inputs.teacher.shape[0], inputs.teacher.shape[1], inputs.student.shape[1], 0.0 if clamp is None else clamp,
        CLAMP=clamp is not None, WIDEN=_widen(inputs.student),
        ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth,
        **_launch_options(tiles, inputs.student),
    )  # fmt: skip


def launch_plain(
    grid: tuple[int, int],
    inputs: Inputs,
    clamp: float | None,
    *,
    partial: Tensor | None = None,
    slope: Tensor | None = None,
    factor: Tensor | None = None,
) -> None:
    """Fill `partial` (sum per tile) or `slope` (f G)."""
    if 0 in grid:
        return
    plain_error[grid](
        inputs.student, inputs.bias, inputs.teacher, inputs.keep, factor, partial, slope,
        inputs.teacher.shape[0], inputs.teacher.shape[1], 0.0 if clamp is None else clamp,
        CLAMP=clamp is not None, ROWS=PLAIN_ROWS, COLUMNS=PLAIN_COLUMNS, num_warps=PLAIN_WARPS,
    )  # fmt: skip


def launch_weight_gradient(slope: Tensor, inputs: Inputs, before: Tensor | None, after: Tensor) -> None:
    """after [D, Ds] = before (float32; None: 0) + slope^T student of one chunk."""
    tiles, (width, depth) = tiles_of(slope.dtype, HALF_GRADIENT_TILES), after.shape
    grid = (triton.cdiv(width, tiles.rows), triton.cdiv(depth, tiles.columns))
    weight_gradient[grid](
        slope, inputs.student, inputs.keep, before, after, inputs.student.shape[0], width, depth,
        WIDEN=_widen(slope), ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth,
        **_launch_options(tiles, inputs.student),
    )  # fmt: skip


def _launch_options(tiles: Tiles, operand: Tensor) -> dict[str, int]:
    limit = register_limit_on(operand.device, tiles.num_warps)
    return {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages, **limit}


def _widen(operand: Tensor) -> bool:
    """Whether products are of float32 copies: only an interpreter runs kernels on a CPU."""
    return operand.dtype == torch.bfloat16 and operand.device.type == "cpu"
