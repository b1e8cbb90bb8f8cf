"""What a loss term is, and what it is given to work with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from distill_engine.values import AttentionKind, Batch, FeatureRequest, Features, Projected, Stack

if TYPE_CHECKING:
    from torch import Tensor

Operand = Literal["logits", "vectors", "scores", "relations"]
Layers = Mapping[Stack, tuple[int, ...]]

NOTHING = FeatureRequest(logits=False)


class VocabularySums(Protocol):
    """Sums over the label positions of a micro-batch, [] float32 each, from one pass over the vocabulary; 0 where no
    active term asks."""

    @property
    def task(self) -> Tensor:
        """Cross-entropy with the labels."""

    @property
    def divergence(self) -> Tensor:
        """From the teacher's distribution, times the temperature squared."""


class Counts(Protocol):
    """How many elements of one micro-batch count, [] int64 each."""

    @property
    def contexts(self) -> Tensor:
        """Context tokens."""

    @property
    def labels(self) -> Tensor:
        """Label tokens."""

    def scores(self, kind: AttentionKind) -> Tensor:
        """What attention scores are divided by: pairs of a query that counts and a key that it sees or, with
        ParlAI's definition, queries."""
        ...


class Comparison(Protocol):
    """The arithmetic that terms share, in the kernels that were chosen; clamped as the recipe says."""

    @property
    def supervision(self) -> Mapping[Stack, Sequence[int]]:
        """stack -> [student layer] -> teacher layer."""

    @property
    def vocabulary(self) -> VocabularySums:
        """Task loss and divergence of this micro-batch."""

    def vectors(
        self,
        students: Sequence[Tensor | Projected],
        teachers: Sequence[Tensor | Projected],
        mask: Tensor,
        clamped: bool = True,
    ) -> Tensor:
        """[pairs] float32: squared error of [B, L, D] at tokens of the mask [B, L], mean over D; a teacher's vectors
        are never Projected."""
        ...

    def scores(self, kind: AttentionKind, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """[layers] float32: squared error of one kind's scores, summed over visible pairs, mean over heads."""
        ...


class Term(Protocol):
    """One part of the loss.

    The recipe reads `weight`, `default` and `meaning` before any model exists; the launcher prices `needs` by
    `operand`; the objective calls `needs` to ask both models for features, `count` for each micro-batch before the
    first forward pass of a step, and `sum` after each forward pass. It is this small because weights, divisors,
    balance, metrics and gradients are the same for all terms: a term says what it looks at, and how far apart that is.

    Loaded without torch: import it inside `sum` if a tensor's methods are not enough. Made once, shared, without state.

    name     in logs and metrics; the name it is registered by
    weight   key of losses.weights; several terms may share one
    meaning  half a sentence for tables
    operand  logits: of the vocabulary; vectors: of the models' width; scores: of attention, head by head; relations:
             of tokens, whatever the heads
    default  its weight where a recipe does not say
    distils  it compares with a teacher
    proposed `distill new` gives it a weight: not where it only smooths labels, or compares once more what another does
    layered  `sum` has one value for each mapped layer, shown one by one
    """

    name: str
    weight: str
    meaning: str
    operand: Operand
    default: float = 0.0
    distils: bool = True
    proposed: bool = True
    layered: bool = False

    def needs(self, layers: Layers) -> FeatureRequest:
        """What a model must give; `layers`: of that model, those that are compared. Logits or their factors are given
        always, whichever the kernels of `Comparison.vocabulary` take: `logits=True` insists on whole ones."""
        ...

    def sum(self, student: Features, teacher: Features, batch: Batch, kernels: Comparison) -> Tensor:
        """[] or, of mapped layers, [M] float32: the error summed over elements that count, with gradients for the
        student. Not divided: the mean over layers and the division by counts come later."""
        ...

    def count(self, counts: Counts) -> Tensor:
        """[]: what `sum` over this micro-batch is divided by."""
        ...
