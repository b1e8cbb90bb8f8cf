"""How hard each loss term pulls: the norm of its own gradient, measured at a step now and then.

The weighted value of a term says little about its influence; the gradient does. At a measured step the first
micro-batch is passed through the student once more, beside the engine, and every term is differentiated alone. The
engine's hooks see none of it: DeepSpeed acts on its own forward and backward passes only, and `torch.autograd.grad`
writes to no `.grad`. Random streams are put back, so the step itself is the one that it would have been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from distill_engine.losses.objective import Objective
from distill_engine.values import Batch, FeatureRequest, Features

_BUCKET_ELEMENTS = 16_000_000  # of one reduction: 64 MB of fp32 at a time, whatever the student's size


class Weights(Protocol):
    """The module that is trained (student.projections.StudentModule)."""

    @property
    def model(self) -> nn.Module:
        """The student alone."""

    def __call__(self, batch: Batch, request: FeatureRequest) -> tuple[Features, list[Tensor]]:
        """One forward pass."""
        ...


class TermGradients:
    """Gradient norms of the weighted terms, over all trained weights of the student (projections left out).

    Costs one forward and one backward pass per term of one micro-batch, and as much memory as the student's weights.
    """

    def __init__(
        self,
        objective: Objective,
        module: Weights,
        every: int | None,
        loss_scale: Callable[[], float],
        device: torch.device,
    ) -> None:
        """Measure at attempts 0, `every`, 2 * `every`, ... of a step (None: only when somebody asks); `loss_scale` is
        that of the moment, so that small fp16 gradients do not vanish. Raises ValueError if `every` is not positive."""
        if every is not None and every < 1:
            raise ValueError(f"gradient norms every {every} steps: it must be at least 1.")
        self._objective = objective
        self._module = module
        self._every = every
        self._loss_scale = loss_scale
        self._devices = [device] if device.type == "cuda" else []
        self._measured_at: int | None = None
        self._norms: Tensor | None = None  # [terms]
        self._by_tensor: Tensor | None = None  # [terms, weight tensors]
        self._reference: str | None = None  # of the last measurement
        self._cosines: Tensor | None = None  # [terms, weight tensors], if it had one
        self._is_matrix: list[bool] = []

    def due(self, attempt: int) -> bool:
        """Whether this attempt is to be measured and has not been: so it is true at its first micro-batch only.
        Depends on nothing but the attempt, so all ranks and resumed runs measure the same steps."""
        return self._every is not None and attempt % self._every == 0 and attempt != self._measured_at

    def measure(
        self,
        attempt: int,
        batch: Batch,
        teacher: Features | None,
        divisor: Tensor,
        sum_across_ranks: Callable[[Tensor], Tensor],
        factors: Mapping[str, float] | None = None,
        reference: str | None = None,
    ) -> None:
        """Differentiate each term of one micro-batch; `divisor` and `factors` as for Objective.total. With `reference`
        every gradient is compared with that term's, of which a float32 copy is held meanwhile. Collective: the norm of
        the gradients' sum over ranks. Never waits for the device; `norms`, `agreements` and `read` do."""
        self._measured_at, self._reference = attempt, reference
        objective = self._objective.for_factors(factors)
        with torch.random.fork_rng(devices=self._devices):
            student_features, _ = self._module(batch, objective.student_request())
            terms = objective.terms(student_features, teacher, batch)
            weighted = objective.weighted(terms, divisor, factors)
            del student_features, terms  # the graph is held by the values alone, and freed by the last backward pass
            weights = [weight for weight in self._module.model.parameters() if weight.requires_grad]
            scale = self._loss_scale()
            norms, products = {}, {}
            held: list[tuple[Tensor, ...]] = []  # the reference's gradient, bucket by bucket
            for term in sorted(weighted, key=lambda name: name != reference):  # the reference comes first
                value = weighted.pop(term)
                gradients = _gradients(value * scale, weights, retain_graph=bool(weighted))
                reduced = _reduced(gradients, sum_across_ranks)
                norms[term], products[term] = _compared(reduced, held, hold=term == reference)
        self._by_tensor = torch.stack([norms[term] for term in self._objective.term_weights]) / scale
        self._cosines = None
        if reference is not None:
            lengths = torch.stack([norms[term] * norms[reference] for term in self._objective.term_weights])
            inner = torch.stack([products[term] for term in self._objective.term_weights])
            self._cosines = torch.where(lengths == 0, 0.0, inner / lengths)
        self._is_matrix = [weight.ndim > 1 for weight in weights]
        self._norms = self._by_tensor.square().sum(dim=1).sqrt()

    def norms(self) -> dict[str, float]:
        """Norms by term of the last measurement that was not read yet; empty if there is none."""
        if self._norms is None:
            return {}
        return dict(zip(self._objective.term_weights, self._norms.tolist(), strict=True))

    def matrix_norms(self) -> dict[str, list[float]]:
        """Norms by term of the last measurement for each weight matrix alone (vectors are left out)."""
        assert self._by_tensor is not None, "measure comes first"
        chosen = self._by_tensor[:, torch.tensor(self._is_matrix)].tolist()
        return dict(zip(self._objective.term_weights, chosen, strict=True))

    def agreements(self) -> dict[str, float]:
        """Cosine by term between its gradient and the reference's, of the last measurement: the mean over the weight
        matrices that the reference reaches, 0 in those that the term does not, NaN if either is not finite in one.

        Matrix by matrix, as an optimizer that normalises its steps (Adam) takes them.
        """
        assert self._cosines is not None and self._reference is not None, "measure comes first, with a reference"
        own = self.matrix_norms()[self._reference]
        chosen = [index for index, is_matrix in enumerate(self._is_matrix) if is_matrix]
        reached = [index for index, norm in zip(chosen, own, strict=True) if norm != 0]
        cosines = self._cosines[:, torch.tensor(reached, dtype=torch.long)].double()
        means = cosines.mean(dim=1) if reached else cosines.new_zeros(len(cosines))
        return dict(zip(self._objective.term_weights, means.tolist(), strict=True))

    def rescale(self, by: Mapping[str, float]) -> None:
        """The weights have changed since the last measurement: what it is with the new ones."""
        if self._norms is not None:
            self._norms = self._norms * self._norms.new_tensor([by[term] for term in self._objective.term_weights])

    def read(self) -> dict[str, float]:
        """Named norms and shares of the last measurement, once; nothing if there was none since."""
        norms, self._norms = self.norms(), None
        total = sum(norms.values())
        named = {}
        for term, norm in norms.items():
            named[f"train/gradient_norm/{term}"] = norm
            named[f"train/gradient_share/{term}"] = norm / total if total > 0 else 0.0
        return named


def _gradients(value: Tensor, weights: Sequence[Tensor], retain_graph: bool) -> list[Tensor]:
    """One gradient per weight; zeros where the term does not depend on it, so that ranks reduce the same shapes."""
    if not value.requires_grad:  # an idle term
        return [torch.zeros_like(weight) for weight in weights]
    found = torch.autograd.grad(value, weights, retain_graph=retain_graph, allow_unused=True)
    return [
        torch.zeros_like(weight) if gradient is None else gradient
        for gradient, weight in zip(found, weights, strict=True)
    ]


def _compared(
    gradient: Iterable[tuple[Tensor, ...]], held: list[tuple[Tensor, ...]], hold: bool
) -> tuple[Tensor, Tensor]:
    """[weight tensors] fp32 Euclidean norms and inner products with the gradient that is held (0 while none is);
    `hold`: put this one there first."""
    norms, products = [], []
    for number, parts in enumerate(gradient):
        norms += [part.norm() for part in parts]
        if hold:
            held.append(parts)
        if held:
            products += [torch.dot(one, other) for one, other in zip(parts, held[number], strict=True)]
        del parts  # before the next bucket is made
    lengths = torch.stack(norms)
    return lengths, torch.stack(products) if products else torch.zeros_like(lengths)


def _reduced(gradients: list[Tensor], sum_across_ranks: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """fp32 vectors of the weight tensors, summed over ranks, bucket by bucket. Empties the list: what is reduced is
    freed."""
    for bucket, sizes in _buckets(gradients):
        yield sum_across_ranks(bucket).split(sizes)


def _buckets(gradients: list[Tensor]) -> Iterator[tuple[Tensor, list[int]]]:
    """The gradients as fp32 vectors of bounded size, larger only for a single larger tensor, and their parts' sizes."""
    held: list[Tensor] = []
    while gradients:
        held.append(gradients.pop(0).flatten().float())
        following = gradients[0].numel() if gradients else _BUCKET_ELEMENTS
        if sum(part.numel() for part in held) + following > _BUCKET_ELEMENTS:
            yield torch.cat(held), [part.numel() for part in held]
            held = []
