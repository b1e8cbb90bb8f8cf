"""Factors that make the weights of a recipe mean the same for every teacher and dataset: pure state machines.

The recipe's weights are then relative importances. With weight w_t, factor f_t and size s_t of term t, and the anchor
a (`anchor_of`: the task term, where it is active; its factor stays 1, so the learning rate keeps its meaning):

    f_t = s_a / s_t,  within [SMALLEST_FACTOR, limit],  so that  w_t f_t s_t : w_a s_a  =  w_t : w_a

    InitialScale  the size is the raw value of the term, its mean over the first N steps; fixed afterwards
    GradientNorm  the size is that of the raw term's gradient in the typical weight matrix that the term and the
                  anchor reach (balancing.typical_ratio), measured now and then; log f_t is averaged exponentially.
                  GradNorm's goal at equal rates (Chen et al., ICML 2018, alpha = 0), solved for the weights instead of
                  learnt, as VQGAN's adaptive weight is (Esser et al., CVPR 2021, eq. 7).

GradientAlignment goes on from GradientNorm's factors g_t: what the other terms pull together stays, as far as the limit
lets it, and is shared out by the agreement c_t, the cosine between a term's gradient and the reference's
(`reference_of`: prediction, where it is active), the mean over the weight matrices that the reference reaches
(TermGradients.agreements):

    f_t = g_t c_t  sum_u w_u / sum_u w_u c_u      u: all terms but the anchor;  c_t at least LEAST_AGREEMENT

A step p_t along gradients that agree by c_t gains sum p_t c_t to first order and, where they are orthogonal to each
other, costs sum p_t^2 / 2: best is p_t in proportion to c_t. The cosine as the weight of an auxiliary loss is from
Du et al. (2018, arXiv:1812.02224).

No torch, no clock, no files: each gets numbers that are equal on all ranks and keeps a state of JSON values. A size
that is 0, inf or NaN tells nothing: that term keeps its factor (1 before anything is known), and has no part in what
is shared out before its first agreement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from distill_engine.registry import load

NOTHING: Mapping[str, float] = MappingProxyType({})
CurrentFactors = Callable[[], Mapping[str, float] | None]  # those of the moment; None: the recipe's weights as they are

SMALLEST_FACTOR = 1e-6
LEAST_AGREEMENT = 0.01  # a term that is at odds with the reference still is seen, and may come to agree


class Balance(Protocol):
    """What all ways have in common."""

    @property
    def factors(self) -> dict[str, float]:
        """Factor of every active term, in the registry's order."""

    def due(self, attempt: int) -> bool:
        """Whether the sizes at this attempt of a step are wanted. Depends on nothing but the attempt."""
        ...

    def observe(self, sizes: Mapping[str, float], agreements: Mapping[str, float]) -> None:
        """The sizes of one attempt that was due; agreements are empty where nobody asks for them."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""


def no_factors() -> None:
    """Of a run without balancing."""


def anchor_of(terms: Sequence[str]) -> str:
    """The term whose factor stays 1: the first over the vocabulary (the task, else prediction), else the first."""
    return next((term for term in terms if load("terms", term).operand == "logits"), terms[0])


def reference_of(terms: Sequence[str]) -> str:
    """The term that others should agree with: the first over the vocabulary that compares with the teacher, whose
    distribution says more than one label does (prediction), else the anchor."""
    found = ((term, load("terms", term)) for term in terms)
    return next((name for name, term in found if term.operand == "logits" and term.distils), anchor_of(terms))


class InitialScale:
    """Every term begins as large as the anchor, times its weight. During the first `steps` attempts the factors are
    those of the mean so far, this attempt included; then they are fixed."""

    def __init__(self, terms: Sequence[str], steps: int, limit: float) -> None:
        """Raises ValueError if `steps` or `limit` is below 1."""
        _at_least_one(steps=steps, limit=limit)
        self._steps, self._limit = steps, limit
        self._anchor = anchor_of(terms)
        self._sums = dict.fromkeys(terms, 0.0)
        self._counts = dict.fromkeys(terms, 0)

    @property
    def factors(self) -> dict[str, float]:
        """See Balance."""
        means = {term: total / max(1, self._counts[term]) for term, total in self._sums.items()}
        anchor = means[self._anchor]
        return {
            term: 1.0 if min(anchor, mean) <= 0 else _bounded(anchor / mean, self._limit)
            for term, mean in means.items()
        }

    def due(self, attempt: int) -> bool:
        """The first `steps` attempts."""
        return attempt < self._steps

    def observe(self, sizes: Mapping[str, float], _agreements: Mapping[str, float] = NOTHING) -> None:
        """Raw values of one attempt; 0 counts (a copied embedding begins at 0 and grows)."""
        for term, size in sizes.items():
            if math.isfinite(size):
                self._sums[term] += size
                self._counts[term] += 1

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


class GradientNorm:
    """Every term pulls as hard as the anchor, times its weight, all along.

    Measured at attempts 0, 1, 4, 16, 64 ... below `every` (terms of copied layers change fast at first), then at every
    multiple of it. The average of log factors gives an older one `smoothing` times the share of the next; it is
    corrected for its short history as Adam's moments are, so the first measurement counts in full.
    """

    def __init__(self, terms: Sequence[str], every: int, smoothing: float, limit: float) -> None:
        """Raises ValueError if `every` or `limit` is below 1, or `smoothing` is not in [0, 1)."""
        _at_least_one(every=every, limit=limit)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing is {smoothing}: use a share from 0 (none) to below 1.")
        self._every, self._limit = every, limit
        self._anchor = anchor_of(terms)
        self._logs = _Averages(terms, smoothing)

    @property
    def factors(self) -> dict[str, float]:
        """See Balance."""
        logs = self._logs.known()
        return {term: _bounded(math.exp(logs.get(term, 0.0)), self._limit) for term in self._logs.terms}

    def due(self, attempt: int) -> bool:
        """Powers of 4 below `every`, and its multiples."""
        early = attempt < self._every and attempt & (attempt - 1) == 0 and attempt.bit_length() % 2 == 1
        return early or attempt % self._every == 0

    def observe(self, sizes: Mapping[str, float], _agreements: Mapping[str, float] = NOTHING) -> None:
        """How hard the raw terms of one attempt pull, in units of their own."""
        anchor = sizes[self._anchor]
        for term, size in sizes.items():
            if term == self._anchor or not (_tells(anchor) and _tells(size)):
                continue
            self._logs.add(term, math.log(_bounded(anchor / size, self._limit)))

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return self._logs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._logs.load_state_dict(state)


class GradientAlignment:
    """What the terms beside the anchor pull together is shared out by how well each agrees with the reference."""

    def __init__(self, weights: Mapping[str, float], every: int, smoothing: float, limit: float) -> None:
        """`weights`: the recipe's, of every active term; the rest is GradientNorm's. Agreements are averaged like log
        factors. Raises ValueError as GradientNorm does."""
        terms = tuple(weights)
        self._norm = GradientNorm(terms, every, smoothing, limit)
        self._weights, self._limit = dict(weights), limit
        self._anchor = anchor_of(terms)
        self._agreements = _Averages([term for term in terms if term != self._anchor], smoothing)

    @property
    def factors(self) -> dict[str, float]:
        """See Balance."""
        shares = {term: max(LEAST_AGREEMENT, average) for term, average in self._agreements.known().items()}
        whole = sum(self._weights[term] for term in shares)
        agreed = sum(self._weights[term] * share for term, share in shares.items())
        factors = self._norm.factors
        return factors | {
            term: _bounded(factors[term] * share * whole / agreed, self._limit) for term, share in shares.items()
        }

    def due(self, attempt: int) -> bool:
        """As GradientNorm."""
        return self._norm.due(attempt)

    def observe(self, sizes: Mapping[str, float], agreements: Mapping[str, float]) -> None:
        """How hard the raw terms of one attempt pull, and cosines with the reference."""
        self._norm.observe(sizes)
        if not _tells(sizes[self._anchor]):
            return
        for term in self._agreements.terms:
            if _tells(sizes[term]) and math.isfinite(agreements[term]):
                self._agreements.add(term, agreements[term])

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"norm": self._norm.state_dict(), **self._agreements.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._norm.load_state_dict(state["norm"])
        self._agreements.load_state_dict(state)


class _Averages:
    """Exponential averages by term, each corrected for its short history."""

    def __init__(self, terms: Sequence[str], smoothing: float) -> None:
        """`smoothing`: the share of the old in each new average."""
        self.terms = tuple(terms)
        self._smoothing = smoothing
        self._averages = dict.fromkeys(terms, 0.0)
        self._counts = dict.fromkeys(terms, 0)

    def add(self, term: str, value: float) -> None:
        self._averages[term] = self._smoothing * self._averages[term] + (1 - self._smoothing) * value
        self._counts[term] += 1

    def known(self) -> dict[str, float]:
        """Of the terms that have any value."""
        return {
            term: self._averages[term] / (1 - self._smoothing**count) for term, count in self._counts.items() if count
        }

    def state_dict(self) -> dict[str, Any]:
        return {"averages": dict(self._averages), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averages, self._counts = dict(state["averages"]), dict(state["counts"])


def _tells(size: float) -> bool:
    return math.isfinite(size) and size > 0


def _bounded(factor: float, limit: float) -> float:
    return min(max(factor, SMALLEST_FACTOR), limit)


def _at_least_one(**given: float) -> None:
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1.")
