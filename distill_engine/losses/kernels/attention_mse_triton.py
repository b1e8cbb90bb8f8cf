"""Squared error of attention scores, fused: tiles of scores live in registers and never reach the GPU's memory.

The formula is that of `attention_mse`; D is one score difference, scale_s q_s.k_s - scale_t q_t.k_t.

    forward    a program owns BLOCK_ROWS queries of one layer, example and head, walks over the keys and leaves one
               partial sum; partial sums are added in a fixed order afterwards
    backward   a program owns BLOCK_ROWS rows of a gradient: queries (dq = G k) or keys (dk = G^T q). Both are the same
               walk with the parts of query and key exchanged, so one launch does both, and the second reader of a
               head finds it in the L2 cache. D is computed again.

One launch serves all layers of a stack: a table on the device holds addresses and strides, queries and keys stay where
the models put them. There are no atomics, so the same input gives the same bits. A head size that is no power of two is
cut in two: 80 = 64 + 16.

Half precision: the second product of the backward pass wants half-precision factors. G is divided by the largest
value of its row and split in two half-precision numbers, so that neither range nor precision of float32 is lost, and
the upstream factor (loss scale) is applied in float32 before the gradient is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from struct import pack, unpack
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_engine.losses.kernels.attention_kernels_triton import (
    LAYER_NUMBER,
    TABLE_ROW,
    backward_kernel,
    forward_kernel,
)
from distill_engine.losses.kernels.attention_mse_chunked import check_shapes, useful
from distill_engine.losses.kernels.occupancy import register_limit_on
from distill_engine.values import QueryKey

LARGEST_HEAD = 256
_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def unsupported(students: Sequence[QueryKey], teachers: Sequence[QueryKey]) -> str:
    """Why the fused kernel cannot compute this; empty when it can."""
    for pair in (*students, *teachers):
        if pair.query.dtype != pair.key.dtype:
            return f"attention queries of {pair.query.dtype}, keys of {pair.key.dtype}: the kernel wants one type"
    for tensor in (t for pair in (*students, *teachers) for t in (pair.query, pair.key)):
        if tensor.dtype not in _TYPES:
            return f"attention scores of {tensor.dtype}: the kernel reads float16, bfloat16 and float32"
        if tensor.shape[-1] > LARGEST_HEAD:
            return f"attention heads of size {tensor.shape[-1]}: the kernel takes up to {LARGEST_HEAD}"
        if not tensor.is_cuda and not triton.knobs.runtime.interpret:
            return f"queries and keys on {tensor.device}: the kernel needs an NVIDIA GPU"
    return ""


def attention_mse_sums(
    students: Sequence[QueryKey],
    teachers: Sequence[QueryKey],
    query_mask: Tensor,
    key_mask: Tensor | None,
    causal: bool,
    clamp: float | None,
    divisor: int = 1,
) -> Tensor:
    """For every mapped layer the sum over valid pairs of the squared score difference, mean over heads.

    students, teachers  one pair per mapped layer: query [B, H, Q, Es | Et], key [B, H, K, Es | Et], equal heads
    query_mask          [B, Q] bool, True where a query counts
    key_mask            [B, K] bool, True where a key may be seen; None: everywhere
    causal              a query sees keys up to its own position (needs Q = K)
    clamp               largest squared difference of one pair, or None
    divisor             of the sums
    returns             [M] float32, gradient to the students' queries and keys only

    Pairs that do not count may hold inf or nan. Raises ValueError where shapes do not fit or the kernel cannot serve.
    """
    check_shapes(students, teachers, query_mask, key_mask, causal)
    if reason := unsupported(students, teachers):
        raise ValueError(reason)
    if not students:
        return query_mask.new_zeros(0, dtype=torch.float32)
    masks = _Masks.of(query_mask, key_mask, students[0].key.shape[2], causal)
    settings = _Settings([(x.scale, y.scale) for x, y in zip(students, teachers, strict=True)], causal, clamp, divisor)
    tensors = [t for x, y in zip(students, teachers, strict=True) for t in (x.query, x.key, y.query, y.key)]
    result: Tensor = _FusedScoreError.apply(settings, masks, *tensors)
    return result


# ---- launches -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """What is not a tensor. scales: of student and teacher, for every layer; the sums are divided by `divisor`."""

    scales: Sequence[tuple[float, float]]
    causal: bool
    clamp: float | None
    divisor: int = 1


@dataclass(frozen=True)
class _Masks:
    """keep: [B, Q + K] uint8, rows that take part in a pair; ends: [B, 2] int32, one past the last such row."""

    keep: Tensor
    ends: Tensor

    @staticmethod
    def of(query_mask: Tensor, key_mask: Tensor | None, keys: int, causal: bool) -> _Masks:
        """Both masks in one tensor, as the kernel reads them; no wait for the device."""
        rows, columns = useful(query_mask, key_mask, causal)
        if columns is None:
            columns = query_mask.any(1, keepdim=True).expand(-1, keys)
        queries = rows.shape[1]
        keep = torch.cat([rows, columns], dim=1).view(torch.uint8)
        last = keep * _places(queries, keys, keep.device)  # 0 or one past the place
        if queries == keys and queries:
            return _Masks(keep, last.view(len(last), 2, queries).amax(2))
        ends = [
            part.amax(1) if part.shape[1] else last.new_zeros(len(last))
            for part in (last[:, :queries], last[:, queries:])
        ]
        return _Masks(keep, torch.stack(ends, dim=1))


@lru_cache(maxsize=16)
def _places(queries: int, keys: int, device: torch.device) -> Tensor:
    """[Q + K] int32: one past each place, of queries and of keys."""
    return torch.cat([torch.arange(1, length + 1, dtype=torch.int32, device=device) for length in (queries, keys)])


def pieces(size: int) -> tuple[int, int]:
    """Two powers of two, at least 16 or 0, in which a head of this size is read: 80 -> (64, 16), 64 -> (64, 0)."""
    main = max(16, 1 << (size.bit_length() - 1))
    rest = max(0, size - main)
    return main, max(16, 1 << (rest - 1).bit_length()) if rest else 0


def tile_options(longest: int, width: int, half: bool, backward: bool) -> dict[str, Any]:
    """Block sizes and warps for sequences up to `longest` and heads read as `width` elements.

    The largest that leave a thread's registers enough on compute capability 8.0 with every Triton that is supported
    (see the compile test), smaller where the sequence is. Without tensor cores (not half) both factors of a product
    live in registers too.
    """
    rows, warps = (128, 8) if half and width <= 96 else (64, 8) if half else (16, 4)
    columns = (32 if backward and width >= 64 else 64) if half else 16
    fits = max(16, 1 << max(0, longest - 1).bit_length())
    rows, columns = min(rows, fits), min(columns, fits)
    fewer = warps if rows >= 64 else 4
    return {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns, "num_warps": fewer, "num_stages": 2, "enable_fp_fusion": True}


@dataclass(frozen=True)
class _Group:
    """Layers whose shapes agree: one launch. tensors: per layer the four inputs, and two outputs in a backward pass."""

    numbers: list[int]
    tensors: list[list[Tensor]]
    scales: list[tuple[float, float]]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, H, Q, K."""
        query, key = self.tensors[0][:2]
        return query.shape[0], query.shape[1], query.shape[2], key.shape[2]

    @property
    def empty(self) -> bool:
        """Whether there is no pair at all."""
        return 0 in self.sizes

    def blocks(self, backward: bool) -> dict[str, Any]:
        """Block sizes and warps of this launch."""
        widths = [sum(pieces(tensor.shape[3])) for tensor in self.tensors[0]]
        half = all(tensor.dtype != torch.float32 for tensor in self.tensors[0])
        return tile_options(max(self.sizes[2:]), max(widths), half, backward)

    def launch(
        self, kernel: Any, programs: int, settings: _Settings, masks: _Masks, last: Tensor, options: dict[str, Any]
    ) -> None:
        """Start either kernel on this many programs; `last` is partials or upstream."""
        table, address_unit, stride_unit = self._table()
        constants: dict[str, Any] = {"CAUSAL": settings.causal, "CLAMP": settings.clamp is not None}
        constants |= {"ADDRESS_UNIT": address_unit, "STRIDE_UNIT": stride_unit}
        constants["EQUAL"] = all(student == teacher for student, teacher in self.scales)
        for side, tensor in (("S", self.tensors[0][0]), ("T", self.tensors[0][2])):
            main, tail = pieces(tensor.shape[3])
            constants |= {f"TYPE_{side}": _TYPES[tensor.dtype], f"SIZE_{side}": tensor.shape[3]}
            constants |= {f"MAIN_{side}": main, f"TAIL_{side}": tail}
        with torch.cuda.device_of(last):
            kernel[(programs,)](
                table, masks.keep, masks.ends, last, *self.sizes, settings.clamp or 0.0, **constants, **options,
                **register_limit_on(last.device, options["num_warps"]),
            )  # fmt: skip

    def _table(self) -> tuple[Tensor, int, int]:
        """[layers, 28] int64 on the device, and the units of its addresses (bytes) and strides (elements)."""
        every = [tensor for layer in self.tensors for tensor in layer]
        address_unit = gcd(16, *(tensor.data_ptr() for tensor in every))
        stride_unit = gcd(16, *(stride for tensor in every for stride in _strides(tensor)))
        rows = []
        for number, tensors, scales in zip(self.numbers, self.tensors, self.scales, strict=True):
            row = [0] * TABLE_ROW.value
            for place, tensor in enumerate(tensors):
                strides = [stride // stride_unit for stride in _strides(tensor)]
                row[4 * place : 4 * place + 4] = [tensor.data_ptr() // address_unit, *strides]
            first = LAYER_NUMBER.value
            row[first : first + 3] = [number, *(unpack("<i", pack("<f", scale))[0] for scale in scales)]
            rows.append(row)
        table = torch.tensor(rows, dtype=torch.int64, pin_memory=every[0].is_cuda)
        return table.to(every[0].device, non_blocking=True), address_unit, stride_unit


def _strides(tensor: Tensor) -> list[int]:
    """Of example, head and position; 0 where there is only one, whatever PyTorch has noted there."""
    return [stride if size > 1 else 0 for size, stride in zip(tensor.shape[:3], tensor.stride(), strict=False)]


def _groups(layers: list[list[Tensor]], scales: Sequence[tuple[float, float]]) -> list[_Group]:
    """Layers sorted into launches, in order of first appearance."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for number, tensors in enumerate(layers):
        kind = tuple((tensor.dtype, tensor.shape[1], tensor.shape[3]) for tensor in tensors)
        found.setdefault(kind, []).append(number)
    return [_Group(numbers, [layers[n] for n in numbers], [scales[n] for n in numbers]) for numbers in found.values()]


def _by_layer(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Student query and key, teacher query and key of every layer; only the head dimension has to lie close."""
    close = [tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in tensors]
    return [close[first : first + 4] for first in range(0, len(close), 4)]


class _FusedScoreError(torch.autograd.Function):
    """[M] sums of squared score differences, mean over heads. Keeps the inputs, which the models hold anyway."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, masks: _Masks, *tensors: Tensor) -> Tensor:
        ctx.settings, ctx.masks = settings, masks
        ctx.save_for_backward(*tensors)
        return _forward(settings, masks, _by_layer(tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        divisor = ctx.settings.divisor
        upstream = gradient.contiguous() if divisor == 1 else gradient / divisor
        outputs = _backward(ctx.settings, ctx.masks, _by_layer(ctx.saved_tensors), upstream)
        return None, None, *(result for pair in outputs for result in (*pair, None, None))


def _forward(settings: _Settings, masks: _Masks, layers: list[list[Tensor]]) -> Tensor:
    """[M] float32."""
    groups = _groups(layers, settings.scales)
    together = len(groups) == 1 and not groups[0].empty
    made = torch.empty if together else torch.zeros
    sums = made(len(layers), dtype=torch.float32, device=masks.keep.device)
    for group in groups:
        if group.empty:
            continue
        examples, heads, queries, _ = group.sizes
        options = group.blocks(backward=False)
        rows = options["BLOCK_ROWS"]
        partials = sums.new_empty(len(group.numbers), examples * heads * triton.cdiv(queries, rows))
        group.launch(forward_kernel, partials.numel(), settings, masks, partials, options)
        summed = partials.sum(1, dtype=torch.float64)
        found = torch.div(summed, heads * settings.divisor, out=sums.new_empty(len(summed)))  # rounded as it is written
        if together:
            return found
        for place, number in enumerate(group.numbers):
            sums[number] = found[place]
    return sums


def _backward(
    settings: _Settings, masks: _Masks, layers: list[list[Tensor]], upstream: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Gradients of every layer's student query and key, laid out as these are. upstream: [M] float32."""
    outputs = [(torch.empty_like(query), torch.empty_like(key)) for query, key, *_ in layers]
    for group in _groups([[*inputs, *pair] for inputs, pair in zip(layers, outputs, strict=True)], settings.scales):
        if group.empty:
            for tensor in (t for tensors in group.tensors for t in tensors[4:]):
                tensor.zero_()
            continue
        examples, heads, queries, keys = group.sizes
        options = group.blocks(backward=True)
        rows = options["BLOCK_ROWS"]
        tiles = triton.cdiv(queries, rows) + triton.cdiv(keys, rows)
        group.launch(backward_kernel, len(group.numbers) * examples * heads * tiles, settings, masks, upstream, options)
    return outputs
