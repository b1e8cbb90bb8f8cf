"""Which loss terms were inf or NaN, in which layers and on which rank: counted on the device, told in one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from distill_engine.cluster.ranks import Ranks, first_of
from distill_engine.losses.objective import TermValue
from distill_engine.values import Batch

NAMED = 4  # ranks and layers in one line
LONGEST_PAUSE = 512  # attempts between two lines


class Sifted(NamedTuple):
    """The numbers of all terms of one micro-batch, one after the other: each term's sum, then those of its layers.

    sums [slots] with 0 in place of what is not finite, finite [slots] bool
    """

    sums: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Found:
    """Micro-batches in which a term was not finite on one rank, and the layers (of `depth`) that were not."""

    nan: int
    inf: int
    layers: tuple[int, ...] = ()
    depth: int = 0


class NonFinite:
    """Counts of one logging interval. All ranks hold the same terms with equally many layers."""

    def __init__(self) -> None:
        self._depths: dict[str, int] = {}
        self._counts: Tensor | None = None  # [2 slots + 1]: NaN, NaN or inf, and micro-batches that were affected
        self._read: Tensor | None = None  # those of the interval that was read last

    def sift(self, terms: Mapping[str, TermValue]) -> Sifted:
        """Count what is not finite in one micro-batch and take it out. Never waits for the device."""
        packed = torch.cat([part for value in terms.values() for part in (value.sum.detach()[None], value.per_layer)])
        bad = packed - packed != 0.0  # inf - inf is NaN too
        marks = torch.cat([packed != packed, bad, bad.any()[None]])
        if self._counts is None:
            self._depths = {term: value.per_layer.numel() for term, value in terms.items()}
            self._counts = marks.double()
        else:
            self._counts += marks
        return Sifted(packed.masked_fill(bad, 0.0), ~bad)

    def read(self, sum_across_ranks: Callable[[Tensor], Tensor]) -> tuple[dict[str, int], int]:
        """Micro-batches of all ranks in which each term was not finite (terms with none left out), and in which any
        was; starts a new interval. One reduction, one wait for the device."""
        counts, self._read, self._counts = self._counts, self._counts, None
        if counts is None:
            return {}, 0
        *marks, affected = sum_across_ranks(counts).tolist()
        _, slots = _halves(marks)
        bad = {term: int(slots[start]) for term, start in self._starts()}
        return {term: count for term, count in bad.items() if count}, int(affected)

    def found(self) -> dict[str, Found]:
        """What this rank has counted since the last reading or, right after one, before it. Waits for the device."""
        counts = self._read if self._counts is None else self._counts
        if counts is None:
            return {}
        nan, bad = _halves(counts.long().tolist()[:-1])
        found = {}
        for term, start in self._starts():
            depth = self._depths[term]
            layers = tuple(n for n in range(depth) if bad[start + 1 + n])
            if bad[start]:
                found[term] = Found(nan[start], bad[start] - nan[start], layers, depth)
        return found

    def _starts(self) -> Iterable[tuple[str, int]]:
        start = 0
        for term, depth in self._depths.items():
            yield term, start
            start += 1 + depth


def _halves(marks: list[Any]) -> tuple[list[Any], list[Any]]:
    """Those of NaN, and of NaN or inf."""
    middle = len(marks) // 2
    return marks[:middle], marks[middle:]


class Pace:
    """Which of many alike events are told: the first, then ever fewer; after a quiet time as from the start."""

    def __init__(self) -> None:
        self._last, self._pause = 0, 0

    def due(self, attempt: int) -> bool:
        """Whether to tell what happened at this attempt, the number of an optimizer step, skipped or not."""
        if self._pause and attempt < self._last + self._pause:
            return False
        quiet = attempt - self._last > 4 * self._pause
        self._pause = 1 if quiet else min(2 * self._pause, LONGEST_PAUSE)
        self._last = attempt
        return True


class Layered(Protocol):
    """A model that can be looked into (engine.student, engine.teacher)."""

    def overflow(self, batch: Batch) -> str:
        """The first layer whose output is not finite, in one more pass over a micro-batch; else empty."""


class LayerSearch:
    """Finds the layer where numbers stop being finite, by one more pass of each model."""

    def __init__(self, models: Mapping[str, Layered], ranks: Ranks) -> None:
        self._models, self._ranks = models, ranks

    def __call__(self, group: Sequence[Batch]) -> str:
        """The first in the micro-batches of a step, of each model, as part of a sentence; empty where all is finite.
        Collective; needs memory for the hidden states of all layers."""
        own = {name: [model.overflow(batch) for batch in group] for name, model in self._models.items()}
        found = [(name, rank, where) for rank, of_rank in enumerate(self._ranks.gather(own))
                 for name, layers in of_rank.items() for where in layers if where]  # fmt: skip
        first = {name: f"in the {name} {where} (rank {rank})" for name, rank, where in reversed(found)}
        return "; ".join(first[name] for name in self._models if name in first)


class NonFiniteReport:
    """Says where numbers were not finite. Every method is collective: ranks meet the same events at the same step."""

    def __init__(
        self,
        counted: NonFinite,
        ranks: Ranks,
        say: Callable[[str], None],
        search: Callable[[Sequence[Batch]], str] = lambda _group: "",
    ) -> None:
        """`search`: see LayerSearch."""
        self._counted, self._ranks, self._say, self._search = counted, ranks, say, search
        self._steps, self._logs = Pace(), Pace()

    def after_step(
        self, attempt: int, applied: bool, grad_norm: float | None, loss_scale: float, group: Sequence[Batch]
    ) -> None:
        """Tell of a step that was skipped, or whose gradient norm is not finite. `group`: its micro-batches."""
        healthy = applied and (grad_norm is None or math.isfinite(grad_norm))
        if healthy or not self._steps.due(attempt):
            return
        what = f"had a gradient norm of {grad_norm}" if applied else "was skipped"
        self._say(f"optimizer step {attempt} {what}: {self.named(group)} (loss scale {loss_scale:g})")

    def after_reading(self, attempt: int, micro_batches: float) -> None:
        """Tell of the interval that was just read, in which so many micro-batches of all ranks were affected."""
        if micro_batches and self._logs.due(attempt):
            self._say(
                f"{micro_batches:.0f} micro-batches up to step {attempt} are left out of the averages of their loss "
                f"terms: {self.named()}"
            )

    def named(self, group: Sequence[Batch] = ()) -> str:
        """The terms that were not finite since the last record, with their layers and ranks, as part of a sentence; and
        the layer of a model where that began in these micro-batches, which costs a pass over each."""
        of_ranks = self._ranks.gather(self._counted.found())
        terms = list(dict.fromkeys(term for found in of_ranks for term in found))
        if not terms:
            return "all loss terms were finite, the gradient was not"
        by_rank = {term: {n: found[term] for n, found in enumerate(of_ranks) if term in found} for term in terms}
        told = f"not finite were {'; '.join(_sentence(term, found) for term, found in by_rank.items())}"
        where = self._search(group) if group else ""
        return f"{told}. {where[:1].upper()}{where[1:]}" if where else told


def _sentence(term: str, of_ranks: Mapping[int, Found]) -> str:
    """`decoder_hidden (layers 1, 3; NaN in 4 micro-batches of rank 1)`."""
    found = list(of_ranks.values())
    layers = sorted({layer for one in found for layer in one.layers})
    where = f"{_listed('layer', layers, found[0].depth)}; " if layers else ""
    counts = {"NaN": sum(one.nan for one in found), "inf": sum(one.inf for one in found)}
    kinds = " and ".join(f"{kind} in {count}" for kind, count in counts.items() if count)
    return f"{term} ({where}{kinds} micro-batches of {_listed('rank', list(of_ranks))})"


def _listed(noun: str, numbers: list[int], of: int | None = None) -> str:
    if of == len(numbers) and of > NAMED:
        return f"all {of} {noun}s"
    return f"{noun}{'s' * (len(numbers) > 1)} {first_of(numbers, NAMED)}"
