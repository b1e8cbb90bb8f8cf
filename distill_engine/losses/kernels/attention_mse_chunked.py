"""Squared error of attention scores in blocks: the memory behaviour of the fused kernel on any machine.

The formula is that of `attention_mse`. Here a block holds the scores of a few heads and a few queries; it is
small enough for a processor's cache (on a GPU: large enough to be worth a launch) and gone before the next one is made:
its share of the gradients is formed at once. Nothing of the size [B, H, Q, K] ever exists where sequences are long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_engine.losses.kernels.attention_mse import bias_difference
from distill_engine.losses.kernels.masked_mse import squared_sum_and_slope_, zero_unless_
from distill_engine.values import QueryKey

BLOCK_SCORES = 1 << 18  # scores of one block: 1 MiB of float32, about one core's share of the cache
BLOCK_EXAMPLES = 4  # that one block spans: queries and keys of all of them are copied
GPU_BLOCK_SCORES = 1 << 23  # 32 MiB: launches are what costs there, so blocks span as many examples as they can hold
BLOCK_QUERIES = 128


def block_limits(device: torch.device) -> tuple[int, int]:
    """Most scores of a block, and most examples that it spans."""
    return (BLOCK_SCORES, BLOCK_EXAMPLES) if device.type == "cpu" else (GPU_BLOCK_SCORES, GPU_BLOCK_SCORES)


def attention_mse_sums(
    students: Sequence[QueryKey],
    teachers: Sequence[QueryKey],
    query_mask: Tensor,
    key_mask: Tensor | None,
    causal: bool,
    clamp: float | None,
) -> Tensor:
    """For every mapped layer the sum over valid pairs of the squared score difference, mean over heads.

    students, teachers  one pair per mapped layer: query [B, H, Q, Es | Et], key [B, H, K, Es | Et], bias [H, Q, K] or
                        None, equal heads
    query_mask          [B, Q] bool, True where a query counts
    key_mask            [B, K] bool, True where a key may be seen; None: everywhere
    causal              a query sees keys up to its own position (needs Q = K)
    clamp               largest squared difference of one pair, or None
    returns             [M] float32, gradient to the students' queries, keys and biases only

    Pairs that do not count may hold inf or nan. Raises ValueError where shapes do not fit.
    """
    check_shapes(students, teachers, query_mask, key_mask, causal)
    queries, keys = useful(query_mask, key_mask, causal)
    sums = []
    for student, teacher in zip(students, teachers, strict=True):
        offset = bias_difference(student, teacher)
        graded = (x is not None and x.requires_grad for x in (student.query, student.key, offset))
        wanted = torch.is_grad_enabled() and any(graded)
        pair = _LayerPair(student, teacher, offset, queries, keys, causal, clamp)
        sums.append(_BlockedScoreError.apply(student.query, student.key, offset, wanted, pair))
    return torch.stack(sums) if sums else query_mask.new_zeros(0, dtype=torch.float32)


# ---- what both ways of computing without the matrices share --------------------------------------------------------


def check_shapes(
    students: Sequence[QueryKey],
    teachers: Sequence[QueryKey],
    query_mask: Tensor,
    key_mask: Tensor | None,
    causal: bool,
) -> None:
    """Raise ValueError where the scores of a layer pair cannot be compared."""
    if len(students) != len(teachers):
        raise ValueError(
            f"attention scores: {len(students)} student layers, {len(teachers)} teacher layers. They are compared one "
            "to one; give one teacher layer for every student layer."
        )
    for layer, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        heads = student.query.shape[1], teacher.query.shape[1]
        if heads[0] != heads[1]:
            raise ValueError(
                f"attention scores, mapped layer {layer}: the student has {heads[0]} heads, the teacher {heads[1]}. "
                "They can only be compared head by head; use equal heads or weight 0."
            )
        _check_lengths(layer, student, teacher, query_mask, key_mask, causal)


def _check_lengths(
    layer: int, student: QueryKey, teacher: QueryKey, query_mask: Tensor, key_mask: Tensor | None, causal: bool
) -> None:
    examples, queries = query_mask.shape
    keys = student.key.shape[2] if key_mask is None else key_mask.shape[1]
    found = [
        (x.query.shape[0], x.key.shape[0], x.query.shape[2], x.key.shape[2], x.query.shape[3] - x.key.shape[3])
        for x in (student, teacher)
    ]
    if any(sizes != (examples, examples, queries, keys, 0) for sizes in found) or (causal and queries != keys):
        shapes = ", ".join(str(tuple(t.shape)) for x in (student, teacher) for t in (x.query, x.key))
        raise ValueError(
            f"attention scores, mapped layer {layer}: student query and key, teacher query and key are {shapes}; the "
            f"masks say {examples} examples, {queries} queries, {keys} keys{', causal' if causal else ''}. Each must "
            "be [examples, heads, length, head size]; student and teacher need the same tokens, and a causal mask as "
            "many keys as queries."
        )


def useful(query_mask: Tensor, key_mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor | None]:
    """[B, Q] and [B, K] bool: queries and keys that take part in at least one pair; no wait for the device.

    A row outside may hold inf or nan, which 0 * inf would otherwise carry into a sum or a gradient. `None` for keys
    means that all may be seen and the mask is not causal, except by examples without any query.
    """
    if not causal:
        if key_mask is None:
            return query_mask, None
        if key_mask is query_mask:
            return query_mask, key_mask
        return query_mask & key_mask.any(1, keepdim=True), key_mask & query_mask.any(1, keepdim=True)
    later = query_mask.view(torch.uint8).flip(1).cummax(1).values.flip(1).view(torch.bool)
    if key_mask is None:
        return query_mask, later
    earlier = key_mask.view(torch.uint8).cummax(1).values.view(torch.bool)
    return query_mask & earlier, key_mask & later


# ---- blocks --------------------------------------------------------------------------------------------------------


class _Heads(NamedTuple):
    """The same few heads of a few examples, G in all, flat and float32, rows outside every pair zeroed."""

    student: QueryKey  # query [G, Q, Es], key [G, K, Es]
    teacher: QueryKey
    examples: slice
    heads: slice
    rows: Tensor  # [examples, Q] bool, those that count
    columns: Tensor | None  # [examples, K]


class _Block(NamedTuple):
    """Scores of a few queries: `slope` is [G, rows, first keys], half the derivative of `total`."""

    rows: slice
    keys: int
    total: Tensor
    slope: Tensor


@dataclass(frozen=True)
class _LayerPair:
    """The inputs of one mapped layer and what counts in it (`useful` masks)."""

    student: QueryKey
    teacher: QueryKey
    offset: Tensor | None  # [H, Q, K] float32, of the position biases
    query_mask: Tensor
    key_mask: Tensor | None
    causal: bool
    clamp: float | None

    def total(self) -> Tensor:
        """[] float64: the squared errors, summed over examples, heads and pairs that count."""
        total = self.student.query.new_zeros((), dtype=torch.float64)
        for part in self._parts():
            for block in self._blocks(part):
                total += block.total
        return total

    def total_and_slopes(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The total, and slopes @ key [B, H, Q, Es], slopes^T @ query [B, H, K, Es] and the slopes' sum over examples
        [H, Q, K] (where there is an offset), float32, laid out as the inputs are: the gradients of half the total but
        for the student's scale."""
        total = self.student.query.new_zeros((), dtype=torch.float64)
        of_query, of_key = (torch.empty_like(x, dtype=torch.float32) for x in (self.student.query, self.student.key))
        of_offset = None if self.offset is None else torch.zeros_like(self.offset)
        for part in self._parts():
            query, key = part.student.query, part.student.key
            of_part = torch.zeros_like(key)
            for block in self._blocks(part):
                total += block.total
                into = of_query[part.examples, part.heads, block.rows]
                into.copy_((block.slope @ key[:, : block.keys]).view(into.shape))
                of_part[:, : block.keys].baddbmm_(block.slope.transpose(1, 2), query[:, block.rows])
                if of_offset is not None:
                    by_example = block.slope.unflatten(0, (len(part.rows), -1))
                    of_offset[part.heads, block.rows, : block.keys] += by_example.sum(dim=0)
            into = of_key[part.examples, part.heads]
            into.copy_(of_part.view(into.shape))
        return total, of_query, of_key, of_offset

    def _parts(self) -> Iterator[_Heads]:
        """Whole examples, as many as a block may hold, or a few heads of one at a time, so that copies stay small."""
        examples, heads, queries, _ = self.student.query.shape
        scores, most_examples = block_limits(self.student.query.device)
        room = max(1, scores // max(1, min(queries, BLOCK_QUERIES) * self.student.key.shape[2]))
        at_once = max(1, min(room // max(1, heads), most_examples))
        for start in range(0, examples, at_once):
            some = slice(start, start + at_once)
            rows, columns = self.query_mask[some], None if self.key_mask is None else self.key_mask[some]
            for first in range(0, heads, room):
                few = slice(first, first + room)
                student, teacher = (
                    QueryKey(_rows(x.query[some, few], rows), _rows(x.key[some, few], columns), x.scale)
                    for x in (self.student, self.teacher)
                )
                yield _Heads(student, teacher, some, few, rows, columns)

    def _blocks(self, part: _Heads) -> Iterator[_Block]:
        """The scores of one part, a few queries at a time; beyond the causal diagonal nothing is computed.

        Masked rows are zero in both models, and so are their differences: only the diagonal needs a mask, or an offset.
        """
        student, teacher = part.student, part.teacher
        queries, keys = student.query.shape[1], student.key.shape[1]
        for first in range(0, queries, BLOCK_QUERIES):
            rows = slice(first, min(first + BLOCK_QUERIES, queries))
            seen = rows.stop if self.causal else keys
            difference = student.query[:, rows] @ student.key[:, :seen].transpose(1, 2)
            teacher_keys = teacher.key[:, :seen].transpose(1, 2)
            difference.baddbmm_(teacher.query[:, rows], teacher_keys, beta=student.scale, alpha=-teacher.scale)
            if self.offset is not None:
                self._add_offset(difference, part, rows, seen)
            if self.causal:
                diagonal = difference[:, :, first:]
                zero_unless_(diagonal, torch.ones_like(diagonal[0], dtype=torch.bool).tril())
            yield _Block(rows, seen, *squared_sum_and_slope_(difference, None, self.clamp))

    def _add_offset(self, difference: Tensor, part: _Heads, rows: slice, seen: int) -> None:
        """To pairs that count; causality apart."""
        assert self.offset is not None
        by_example = difference.unflatten(0, (len(part.rows), -1))
        by_example += self.offset[part.heads, rows, :seen]
        zero_unless_(by_example, part.rows[:, None, rows, None])
        if part.columns is not None:
            zero_unless_(by_example, part.columns[:, None, None, :seen])


def _rows(values: Tensor, keep: Tensor | None) -> Tensor:
    """[B, H, L, E] as [B H, L, E] float32, contiguous; rows that are not kept [B, L] become 0, whatever they hold."""
    copy = torch.empty(values.shape, dtype=torch.float32, device=values.device).copy_(values)
    return (copy if keep is None else zero_unless_(copy, keep[:, None, :, None])).flatten(0, 1)


class _BlockedScoreError(torch.autograd.Function):
    """Sum of squared score differences of one layer pair, mean over heads.

    With D = scale * q k^T - (teacher's scores) and G = 2 D where the pair counts and the clamp is not reached:

        dq = upstream / heads * scale * G k          dk = upstream / heads * scale * G^T q
        doffset = upstream / heads * G, summed over examples

    Both are made while a block of D is at hand and stay float32 until the upstream factor is known. The backward pass
    scales them in place and hands them over; a second backward pass through the same graph makes them again.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, offset: Tensor | None, wanted: bool, pair: _LayerPair) -> Tensor:
        masks = pair.query_mask, pair.key_mask
        ctx.save_for_backward(query, key, offset, pair.teacher.query, pair.teacher.key, *masks)
        ctx.settings = pair.student.scale, pair.teacher.scale, pair.causal, pair.clamp
        if not wanted:
            return (pair.total() / query.shape[1]).float()
        total, *ctx.slopes = pair.total_and_slopes()
        return (total / query.shape[1]).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, offset, teacher_query, teacher_key, *masks = ctx.saved_tensors
        scale, teacher_scale, causal, clamp = ctx.settings
        if ctx.slopes is None:
            teacher = QueryKey(teacher_query, teacher_key, teacher_scale)
            pair = _LayerPair(QueryKey(query, key, scale), teacher, offset, masks[0], masks[1], causal, clamp)
            _, *ctx.slopes = pair.total_and_slopes()
        *slopes, of_offset = ctx.slopes
        factor = gradient * (2.0 / query.shape[1])
        of_query, of_key = (one.mul_(gradient * (2.0 * scale / query.shape[1])).to(query.dtype) for one in slopes)
        ctx.slopes = None
        return of_query, of_key, None if of_offset is None else of_offset.mul_(factor), None, None
