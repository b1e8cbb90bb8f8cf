"""The objective: weights decide what is captured, terms are computed, divided by their counts and summed.

Two definitions, one switch (`definition`):

    parlai     each micro-batch of each rank divides by its own token counts, and attention averages over the padded
               key length; the results are averaged over micro-batches and ranks. ParlAI's numbers, for which
               published weights were tuned.
    invariant  every sum is divided by the count of valid elements over all ranks and micro-batches of the optimizer
               step; for attention the elements are valid (query, key) pairs. The gradient depends on nothing but the
               examples: not on padding, order, split, accumulation or number of ranks.

The loop asks for `counts` of all micro-batches before the first forward pass, turns them into `divisors` with one
reduction, and then every micro-batch's `total` is already its share of the global loss: gradients are summed
everywhere, never averaged. On micro-batches of the student's own samples (Batch.sampled) terms that compare with the
data are 0 and count 0: `invariant` takes their mean over the labels of the others, `parlai` over all micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from distill_engine.losses.comparison import BatchCounts, Definition, MicroBatchComparison
from distill_engine.losses.config import LossWeights
from distill_engine.losses.divergences.forward_kl import FORWARD_KL
from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.losses.kernels.dispatch import REFERENCE, Implementation, Kernels
from distill_engine.losses.quality import TokenScores
from distill_engine.losses.terms.protocol import Term
from distill_engine.losses.vocabulary import Hits, Sums, Vocabulary
from distill_engine.values import Batch, FeatureRequest, Features, Stack

Factors = Mapping[str, float] | None


@dataclass(frozen=True)
class TermValue:
    """One loss term of one micro-batch on one rank: `sum` still has to be divided.

    sum       [] float32 with gradient: summed over elements, mean over mapped layers
    count     [] float32: what the sum is divided by to become this micro-batch's own mean
    per_layer [M] float32 without gradient: the same sum for each mapped layer alone (empty if the term has none)
    idle      it was not computed: its weight has become 0
    """

    sum: Tensor
    count: Tensor
    per_layer: Tensor
    idle: bool = False


@dataclass(frozen=True)
class Objective:
    """Computes the weighted sum of terms.

    supervision[stack][student layer] is the teacher layer it is compared with; `kernels` says who computes what.
    idle  names of terms that are neither captured nor computed: 0, with a count of 0
    """

    weights: LossWeights
    supervision: Mapping[Stack, Sequence[int]]
    definition: Definition = "invariant"
    temperature: float = 1.0
    clamp: float | None = 65504.0
    kernels: Kernels = REFERENCE
    divergence: Divergence = FORWARD_KL
    idle: frozenset[str] = frozenset()
    terms_used: tuple[Term, ...] = field(init=False, repr=False)
    term_weights: dict[str, float] = field(init=False, repr=False)
    _counted: WeakKeyDictionary[Batch, _Counted] = field(init=False, repr=False, compare=False)
    _layers: dict[str, int] = field(init=False, repr=False, compare=False)  # of layered terms that were computed

    def __post_init__(self) -> None:
        """Raises ValueError if no term has a weight."""
        object.__setattr__(self, "terms_used", tuple(self.weights.terms))
        object.__setattr__(self, "term_weights", self.weights.per_term)
        object.__setattr__(self, "_counted", WeakKeyDictionary())
        object.__setattr__(self, "_layers", {})
        if not self.terms_used:
            raise ValueError("losses.weights are all 0: there is nothing to learn. Set at least losses.weights.task.")

    def effective_weights(self, factors: Factors) -> dict[str, float]:
        """`term_weights`, each times its factor (train/balance.py); None: as they are."""
        own = self.term_weights
        return own if factors is None else {term: weight * factors[term] for term, weight in own.items()}

    def student_request(self) -> FeatureRequest:
        """What the student must give; unweighted features are not requested."""
        return self._request({stack: tuple(range(len(layers))) for stack, layers in self.supervision.items()})

    def teacher_request(self) -> FeatureRequest:
        """What the teacher must give: mapped layers only."""
        layers = {stack: tuple(sorted(set(layers))) for stack, layers in self.supervision.items()}
        return self._request(layers, of_teacher=True)

    def with_prediction(self, implementation: Implementation) -> Objective:
        """The same objective, the vocabulary's sums computed in another way (validation has batches of another
        size)."""
        return replace(self, kernels=replace(self.kernels, prediction=implementation))

    def for_factors(self, factors: Factors) -> Objective:
        """The same objective, those terms idle whose factor is 0. It shares what was counted of batches."""
        idle = frozenset(term for term, factor in (factors or {}).items() if factor == 0)
        if idle == self.idle:
            return self
        found = replace(self, idle=idle)
        object.__setattr__(found, "_counted", self._counted)
        object.__setattr__(found, "_layers", self._layers)
        return found

    def _request(self, layers: Mapping[Stack, tuple[int, ...]], *, of_teacher: bool = False) -> FeatureRequest:
        """Logits or their factors always: accuracy and agreement are reported even where no term needs them."""
        whole = self.kernels.prediction == "reference"
        asked = self.weights.request(layers, of_teacher=of_teacher, idle=self.idle)
        return replace(asked, logits=whole or asked.logits, head=not whole or asked.head)

    # ---- terms ---------------------------------------------------------------------------------------------

    def terms(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, TermValue]:
        """Every active term of one micro-batch, in the registry's order."""
        return self.terms_and_hits(student, teacher, batch)[0]

    def terms_and_hits(
        self, student: Features, teacher: Features | None, batch: Batch
    ) -> tuple[dict[str, TermValue], Hits]:
        """Every active term of one micro-batch, in the registry's order, and how many labels are predicted."""
        labels = self._count(batch).labels
        sums, hits = self._vocabulary.sums_and_hits(student, teacher, batch.labels, labels)
        return self._values(sums, student, teacher, batch), hits

    @torch.no_grad()
    def terms_and_scores(
        self, student: Features, teacher: Features | None, batch: Batch
    ) -> tuple[dict[str, TermValue], TokenScores]:
        """The same terms without gradients, and how every label position is predicted."""
        sums, scores = self._vocabulary.sums_and_scores(student, teacher, batch.labels)
        return self._values(sums, student, teacher, batch), scores

    @torch.no_grad()
    def teacher_scores(self, teacher: Features, batch: Batch) -> TokenScores:
        """How the teacher predicts every label position, from the pass that was made for the terms."""
        return self._vocabulary.scores(teacher, batch.labels)

    @property
    def _vocabulary(self) -> Vocabulary:
        """Terms that insist on whole logits do without these sums."""
        asking = [term for term in self.terms_used if term.operand == "logits" and not term.needs(_NO_LAYERS).logits]
        task, divergence = (any(term.distils == distils for term in asking) for distils in (False, True))
        return Vocabulary(task, divergence, self.kernels.prediction, self.temperature, self.divergence)

    def _values(self, sums: Sums, student: Features, teacher: Features | None, batch: Batch) -> dict[str, TermValue]:
        """All active terms in the registry's order."""
        comparison = MicroBatchComparison(sums, self.supervision, self.kernels, self.definition, self.clamp)
        none = batch.labels.new_empty(0, dtype=torch.float32)
        counts = self._count(batch).as_floats.unbind()
        values: dict[str, TermValue] = {}
        for term, count in zip(self.terms_used, counts, strict=True):
            if term.name in self.idle:
                values[term.name] = _nothing(none, self._layers.get(term.name, 0))
                continue
            assert teacher is not None or not term.distils, "the recipe rules refuse distillation without a teacher"
            found = term.sum(student, teacher or Features(), batch, comparison)
            if _is_off(term, batch):  # stays in the graph: all ranks reduce the same gradients
                found = found * 0.0
            total = found.mean() if found.ndim and len(found) > 1 else found.squeeze()
            values[term.name] = TermValue(total, count, found.detach() if term.layered else none)
            self._layers[term.name] = len(values[term.name].per_layer)
        return values

    # ---- denominators --------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> Tensor:
        """[active terms] float64: what each term's sum over this micro-batch is divided by."""
        return self._count(batch).by_term.double()

    def _count(self, batch: Batch) -> _Counted:
        """Once for each batch: before the first forward pass of a step, after it, and for the log."""
        found = self._counted.get(batch)
        if found is None:
            counts = BatchCounts(batch, self.definition)
            found_here = [(_is_off(term, batch), term.count(counts)) for term in self.terms_used]
            by_term = torch.stack([torch.zeros_like(count) if off else count for off, count in found_here])
            found = self._counted[batch] = _Counted(by_term, by_term.float(), counts.labels, counts.contexts)
        return found

    def tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[] int64 each: label and context tokens."""
        counted = self._count(batch)
        return counted.labels, counted.contexts

    def divisors(self, group: Sequence[Batch], sum_across_ranks: Callable[[Tensor], Tensor], world_size: int) -> Tensor:
        """[micro-batches, active terms] float32: with these, summing `total` over micro-batches and ranks gives the
        global loss of the optimizer step. One reduction for `invariant`, of float64, none for `parlai`, whose counts of
        one micro-batch are exact in float32."""
        if self.definition == "parlai":
            counted = torch.stack([self._count(batch).as_floats for batch in group])
            return counted.clamp(min=1.0) * (len(group) * world_size)
        local = torch.stack([self._count(batch).by_term for batch in group])
        return sum_across_ranks(local.sum(dim=0).double()).clamp(min=1.0).float().expand(len(group), -1)

    def total(self, terms: Mapping[str, TermValue], divisors: Tensor, factors: Factors = None) -> Tensor:
        """Weighted sum of `terms` over one row of `divisors`: this micro-batch's share of the global loss, []."""
        sums = torch.stack([value.sum for value in terms.values()])
        weights = _weights(tuple(self.effective_weights(factors).values()), sums.device)
        return (weights * sums / divisors).sum()

    def weighted(self, terms: Mapping[str, TermValue], divisors: Tensor, factors: Factors = None) -> dict[str, Tensor]:
        """Each term's part of `total`, [], in the registry's order."""
        weights = self.effective_weights(factors)
        return {
            term: weight * value.sum / divisors[index]
            for index, ((term, weight), value) in enumerate(zip(weights.items(), terms.values(), strict=True))
        }


def _is_off(term: Term, batch: Batch) -> bool:
    """Whether it compares with labels that are nobody's but the student's."""
    return batch.sampled and not term.distils


def _nothing(like: Tensor, layers: int) -> TermValue:
    """That of an idle term; as many layers as it had, so that what is logged keeps its shape."""
    return TermValue(like.new_zeros(()), like.new_zeros(()), like.new_zeros(layers), idle=True)


@lru_cache(maxsize=16)
def _weights(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[terms] float32; copied to the device when they change, not at every micro-batch."""
    return torch.tensor(values, dtype=torch.float32, device=device)


class _Counted(NamedTuple):
    """Of one micro-batch: [active terms] int64, the same in float32, and its label and context tokens []."""

    by_term: Tensor
    as_floats: Tensor
    labels: Tensor
    contexts: Tensor


_NO_LAYERS: Mapping[Stack, tuple[int, ...]] = MappingProxyType(dict.fromkeys(Stack, ()))
