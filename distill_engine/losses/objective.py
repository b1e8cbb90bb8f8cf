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
everywhere, never averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from distill_engine.losses.attention_mse import pair_mask
from distill_engine.losses.dispatch import REFERENCE, Implementation, Kernels, attention_sums, hidden_sum
from distill_engine.losses.quality import TokenScores
from distill_engine.losses.vocabulary import Hits, VocabularyTerms
from distill_engine.values import (
    AttentionKind,
    Batch,
    FeatureRequest,
    Features,
    Projected,
    Stack,
    TermValue,
)

Definition = Literal["parlai", "invariant"]
Factors = Mapping[str, float] | None

_EMBEDDING_TERMS = {"encoder_embedding": Stack.ENCODER, "decoder_embedding": Stack.DECODER}
_HIDDEN_TERMS = {"encoder_hidden": Stack.ENCODER, "decoder_hidden": Stack.DECODER}
_ATTENTION_TERMS = {
    "encoder_self_attention": AttentionKind.ENCODER_SELF,
    "decoder_self_attention": AttentionKind.DECODER_SELF,
    "cross_attention": AttentionKind.CROSS,
}
# fixed order: logs, reductions and golden files rely on it
TERMS = ("task", "encoder", *_EMBEDDING_TERMS, *_HIDDEN_TERMS, *_ATTENTION_TERMS, "prediction")


@dataclass(frozen=True)
class Weights:
    """Coefficients as ParlAI names them: embedding, hidden and self_attention each weigh two terms that are summed."""

    task: float = 1.0
    encoder: float = 0.0
    embedding: float = 0.0
    hidden: float = 0.0
    self_attention: float = 0.0
    cross_attention: float = 0.0
    prediction: float = 0.0

    def per_term(self) -> dict[str, float]:
        """Weight of every single term, in TERMS order, zeros left out."""
        of_term = {
            "encoder_embedding": self.embedding,
            "decoder_embedding": self.embedding,
            "encoder_hidden": self.hidden,
            "decoder_hidden": self.hidden,
            "encoder_self_attention": self.self_attention,
            "decoder_self_attention": self.self_attention,
        } | {f.name: getattr(self, f.name) for f in fields(self)}
        return {term: of_term[term] for term in TERMS if of_term[term] != 0}

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any(term != "task" for term in self.per_term())


@dataclass(frozen=True)
class Objective:
    """Computes the weighted sum of terms.

    supervision[stack][student layer] is the teacher layer it is compared with; `kernels` says who computes what.
    """

    weights: Weights
    supervision: Mapping[Stack, Sequence[int]]
    definition: Definition = "invariant"
    temperature: float = 1.0
    clamp: float | None = 65504.0
    kernels: Kernels = REFERENCE

    def __post_init__(self) -> None:
        if not self.weights.per_term():
            raise ValueError("losses.weights are all 0: there is nothing to learn. Set at least losses.weights.task.")

    @property
    def term_weights(self) -> dict[str, float]:
        """Active terms and their weights, in TERMS order."""
        return self.weights.per_term()

    def effective_weights(self, factors: Factors) -> dict[str, float]:
        """`term_weights`, each times its factor (train/balance.py); None: as they are."""
        own = self.term_weights
        return own if factors is None else {term: weight * factors[term] for term, weight in own.items()}

    def student_request(self) -> FeatureRequest:
        """What the student must show; unweighted features are not requested."""
        return self._request({stack: tuple(range(len(layers))) for stack, layers in self.supervision.items()})

    def teacher_request(self) -> FeatureRequest:
        """What the teacher must show: mapped layers only."""
        return self._request({stack: tuple(sorted(set(layers))) for stack, layers in self.supervision.items()})

    def with_prediction(self, implementation: Implementation) -> Objective:
        """The same objective, task and prediction computed in another way (validation has batches of another size)."""
        return replace(self, kernels=replace(self.kernels, prediction=implementation))

    def _request(self, layers: Mapping[Stack, tuple[int, ...]]) -> FeatureRequest:
        active = self.term_weights
        whole = self.kernels.prediction == "reference"
        return FeatureRequest(
            logits=whole,  # accuracy and agreement are reported even where no term needs the vocabulary
            head=not whole,
            encoder_output="encoder" in active,
            embeddings=frozenset(stack for term, stack in _EMBEDDING_TERMS.items() if term in active),
            hidden={stack: layers[stack] for term, stack in _HIDDEN_TERMS.items() if term in active},
            attention={kind: layers[kind.query_stack] for term, kind in _ATTENTION_TERMS.items() if term in active},
        )

    # ---- terms ---------------------------------------------------------------------------------------------

    def terms(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, TermValue]:
        """Every active term of one micro-batch, in TERMS order."""
        return self.terms_and_hits(student, teacher, batch)[0]

    def terms_and_hits(
        self, student: Features, teacher: Features | None, batch: Batch
    ) -> tuple[dict[str, TermValue], Hits]:
        """Every active term of one micro-batch, in TERMS order, and how many labels are predicted."""
        sums, hits = self._vocabulary.sums_and_hits(student, teacher, batch.labels)
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
    def _vocabulary(self) -> VocabularyTerms:
        return VocabularyTerms(self.term_weights, self.kernels.prediction, self.temperature)

    def _values(
        self, of_vocabulary: Mapping[str, Tensor], student: Features, teacher: Features | None, batch: Batch
    ) -> dict[str, TermValue]:
        """All active terms in TERMS order; those over the vocabulary are there already."""
        counts = self.counts(batch)
        none = batch.labels.new_empty(0, dtype=torch.float32)
        values: dict[str, TermValue] = {}
        for index, term in enumerate(self.term_weights):
            known = of_vocabulary.get(term)
            total, per_layer = self._sum(term, student, teacher, batch) if known is None else (known, none)
            values[term] = TermValue(total, counts[index].float(), per_layer)
        return values

    def _sum(self, term: str, student: Features, teacher: Features | None, batch: Batch) -> tuple[Tensor, Tensor]:
        assert teacher is not None, "the recipe rules refuse distillation weights without a teacher"
        none = batch.labels.new_empty(0, dtype=torch.float32)
        if term == "encoder":  # ParlAI does not clamp this one
            mask = batch.context_mask
            return self._distance(student.encoder_output, teacher.encoder_output, mask, None), none
        if term in _EMBEDDING_TERMS:
            stack = _EMBEDDING_TERMS[term]
            mask = _token_mask(batch, stack)
            return self._distance(student.embeddings[stack], teacher.embeddings[stack], mask, self.clamp), none
        if term in _HIDDEN_TERMS:
            return self._hidden(_HIDDEN_TERMS[term], student, teacher, batch)
        return self._attention(_ATTENTION_TERMS[term], student, teacher, batch)

    def _distance(
        self, student: Tensor | Projected | None, teacher: Tensor | Projected | None, mask: Tensor, clamp: float | None
    ) -> Tensor:
        assert student is not None and isinstance(teacher, Tensor)
        return hidden_sum(self.kernels.hidden, student, teacher, mask, clamp)

    def _hidden(self, stack: Stack, student: Features, teacher: Features, batch: Batch) -> tuple[Tensor, Tensor]:
        mask = _token_mask(batch, stack)
        sums = [
            self._distance(student.hidden[stack, layer], teacher.hidden[stack, taught_by], mask, self.clamp)
            for layer, taught_by in enumerate(self.supervision[stack])
        ]
        return _mean_over_layers(torch.stack(sums))

    def _attention(
        self, kind: AttentionKind, student: Features, teacher: Features, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        layers = list(enumerate(self.supervision[kind.query_stack]))
        students = [student.attention[kind, layer] for layer, _ in layers]
        teachers = [teacher.attention[kind, taught_by] for _, taught_by in layers]
        sums = attention_sums(self.kernels.attention, students, teachers, *_visible(batch, kind), self.clamp)
        keys = students[0].key.shape[2]  # parlai: mean over the padded key length
        return _mean_over_layers(sums / keys if self.definition == "parlai" else sums)

    # ---- denominators --------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> Tensor:
        """[active terms] float64: what each term's sum over this micro-batch is divided by."""
        return torch.stack([self._count(term, batch).double() for term in self.term_weights])

    def _count(self, term: str, batch: Batch) -> Tensor:
        if term in _ATTENTION_TERMS and self.definition == "invariant":
            return pair_mask(*_visible(batch, _ATTENTION_TERMS[term])).sum()
        on_encoder = term in ("encoder", "encoder_embedding", "encoder_hidden", "encoder_self_attention")
        return batch.context_mask.sum() if on_encoder else batch.label_mask.sum()

    def divisors(
        self, group: Sequence[Batch], sum_across_ranks: Callable[[Tensor], Tensor], world_size: int
    ) -> Tensor:
        """[micro-batches, active terms] float64: with these, summing `total` over micro-batches and ranks gives the
        global loss of the optimizer step. One reduction for `invariant`, none for `parlai`."""
        local = torch.stack([self.counts(batch) for batch in group])
        if self.definition == "parlai":
            return local.clamp(min=1.0) * (len(group) * world_size)
        return sum_across_ranks(local.sum(dim=0)).clamp(min=1.0).expand_as(local)

    def total(self, terms: Mapping[str, TermValue], divisors: Tensor, factors: Factors = None) -> Tensor:
        """Weighted sum of `terms` over one row of `divisors`: this micro-batch's share of the global loss, []."""
        return torch.stack(list(self.weighted(terms, divisors, factors).values())).sum()

    def weighted(
        self, terms: Mapping[str, TermValue], divisors: Tensor, factors: Factors = None
    ) -> dict[str, Tensor]:
        """Each term's part of `total`, [], in TERMS order."""
        weights = self.effective_weights(factors)
        return {
            term: weight * value.sum / divisors[index].float()
            for index, ((term, weight), value) in enumerate(zip(weights.items(), terms.values(), strict=True))
        }


def _mean_over_layers(sums: Tensor) -> tuple[Tensor, Tensor]:
    return sums.mean(), sums.detach()


def _token_mask(batch: Batch, stack: Stack) -> Tensor:
    return batch.context_mask if stack is Stack.ENCODER else batch.label_mask


def _visible(batch: Batch, kind: AttentionKind) -> tuple[Tensor, Tensor | None, bool]:
    """Queries that count [B, Q], keys that they may see [B, K], and whether they see no later ones.

    Decoder self-attention has no padding mask on keys (ParlAI): right padding lies after every valid query, so the
    causal mask already excludes it.
    """
    causal = kind is AttentionKind.DECODER_SELF
    return _token_mask(batch, kind.query_stack), None if causal else batch.context_mask, causal
