"""Balancing of the loss weights in a run: sizes are measured beside the step, a policy makes factors of them.

Sizes are of the step's first micro-batch on all ranks, before its backward pass, so new factors hold for the whole
step. They are reduced over ranks and then rank 0's, hence equal everywhere. Padding has no part in them: values are
sums / counts of valid elements, gradients come from the same sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from distill_engine.checkpoint.parts import Stateful
from distill_engine.losses.objective import Objective
from distill_engine.train.balance import NOTHING, Balance, anchor_of
from distill_engine.train.fade import Fade
from distill_engine.train.hooks import Hook
from distill_engine.train.progress import Progress
from distill_engine.train.term_gradients import TermGradients, Weights
from distill_engine.values import Batch, Features


class RankGroup(Protocol):
    """The part of the process group that balancing needs."""

    device: torch.device

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise sum over ranks."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value."""
        ...


class LossTerms(Hook):
    """What is measured of the loss terms beside a step: to balance their weights, and for the log."""

    def __init__(
        self,
        balancer: Balancer | None,
        gradients: TermGradients | None,
        ranks: RankGroup,
        fade: Fade | None = None,
    ) -> None:
        self.balancer, self.gradients = balancer, gradients
        self._ranks, self._fade = ranks, fade
        self._progress = Progress()

    def begins_at(self, progress: Progress) -> None:
        """Factors go by the loop's own count, also where a resumed run takes no step."""
        self._progress = progress

    @property
    def stateful(self) -> Mapping[str, Stateful]:
        """The balancer, if there is one."""
        return {} if self.balancer is None else {"balance": self.balancer}

    def factors(self) -> Mapping[str, float] | None:
        """Those that hold now."""
        balanced = None if self.balancer is None else self.balancer.factors
        return balanced if self._fade is None else self._fade.factors(self._progress.attempts, balanced)

    def before_backward(self, attempt: int, batch: Batch, teacher: Features | None, divisor: Tensor) -> None:
        """Balance first: new factors hold for the whole step, and for what is logged of it."""
        if self.balancer is not None:
            self.balancer.before_backward(attempt, batch, teacher, divisor)
        if self.gradients is not None and self.gradients.due(attempt):
            self.gradients.measure(attempt, batch, teacher, divisor, self._ranks.sum, self.factors())

    def train_values(self, wall_seconds: float) -> dict[str, float]:  # noqa: ARG002
        """Norms that were measured since the last call, and the factors."""
        norms = {} if self.gradients is None else self.gradients.read()
        return norms | ({} if self.balancer is None else self.balancer.read())


class Moment(NamedTuple):
    """What there is to measure by: the first micro-batch of one attempt of a step, before its backward pass.

    divisor  as for Objective.total          factors  those in force
    """

    attempt: int
    batch: Batch
    teacher: Features | None
    divisor: Tensor
    factors: Mapping[str, float]


class Measured(NamedTuple):
    """How large the raw terms are, and how well their gradients agree with the reference's, where somebody asks."""

    sizes: Mapping[str, float]
    agreements: Mapping[str, float]


Measure = Callable[[Moment], Measured]  # may be collective


class Balancer:
    """Factors of the loss weights. Its state is the policy's; it is a part of the checkpoint."""

    def __init__(
        self,
        policy: Balance,
        measure: Measure,
        ranks: RankGroup,
        changed: Callable[[Mapping[str, float], Mapping[str, float]], None] = lambda _before, _after: None,
    ) -> None:
        """`changed(before, after)` hears of new factors."""
        self._policy = policy
        self._measure = measure
        self._ranks = ranks
        self._changed = changed
        self._factors = policy.factors
        self._measured_at: int | None = None

    @property
    def factors(self) -> dict[str, float]:
        """Of every active term, in the registry's order."""
        return self._factors

    def before_backward(self, attempt: int, batch: Batch, teacher: Features | None, divisor: Tensor) -> None:
        """Measure and decide, where this attempt is due; does nothing at its later micro-batches. Collective."""
        if attempt == self._measured_at or not self._policy.due(attempt):
            return
        self._measured_at = attempt
        before = self._factors
        measured = self._measure(Moment(attempt, batch, teacher, divisor, before))
        self._policy.observe(*self._ranks.broadcast((dict(measured.sizes), dict(measured.agreements))))
        self._factors = self._policy.factors
        self._changed(before, self._factors)

    def read(self) -> dict[str, float]:
        """Named factors."""
        return {f"train/balance/{term}": factor for term, factor in self._factors.items()}

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return self._policy.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._policy.load_state_dict(state)
        self._factors = self._policy.factors


def by_value(policy: Balance, objective: Objective, module: Weights, ranks: RankGroup) -> Balancer:
    """Sizes are the terms' raw values, by one more forward pass at each step that is due."""
    devices = [ranks.device] if ranks.device.type == "cuda" else []

    @torch.no_grad()
    def measure(at: Moment) -> Measured:
        with torch.random.fork_rng(devices=devices):  # dropout of the step itself is as without this
            student_features, _ = module(at.batch, objective.student_request())
        terms = objective.terms(student_features, at.teacher, at.batch)
        local = torch.stack([torch.stack([value.sum.double(), value.count.double()]) for value in terms.values()])
        if objective.definition == "parlai":  # a mean of the ranks' own means
            local = torch.stack([local[:, 0] / local[:, 1].clamp(min=1.0), (local[:, 1] > 0).double()], dim=1)
        sums, counts = ranks.sum(local).unbind(dim=1)
        # NaN where nothing counts (samples have no task): it tells nothing
        return Measured(dict(zip(terms, (sums / counts).tolist(), strict=True)), NOTHING)

    return Balancer(policy, measure, ranks)


def by_gradient(
    policy: Balance,
    objective: Objective,
    gradients: TermGradients,
    ranks: RankGroup,
    reference: str | None = None,
) -> Balancer:
    """Sizes are the raw terms' gradients beside the anchor's, in the typical weight matrix that both reach.

    They are measured with weight and factor, as in the backward pass itself: what fp16 can hold there it holds here.
    `reference`: the term with whose gradient the others should agree, for a policy that asks.
    """

    def measure(at: Moment) -> Measured:
        gradients.measure(at.attempt, at.batch, at.teacher, at.divisor, ranks.sum, at.factors, reference)
        weights, norms = objective.effective_weights(at.factors), gradients.matrix_norms()
        anchor = anchor_of(tuple(weights))
        ratios = {term: typical_ratio(own, norms[anchor]) for term, own in norms.items()}
        sizes = {term: ratio * weights[anchor] / weights[term] for term, ratio in ratios.items()}
        return Measured(sizes, NOTHING if reference is None else gradients.agreements())

    def changed(before: Mapping[str, float], after: Mapping[str, float]) -> None:
        gradients.rescale({term: after[term] / before[term] for term in after})

    return Balancer(policy, measure, ranks, changed)


def typical_ratio(own: Sequence[float], anchor: Sequence[float]) -> float:
    """Geometric mean of own / anchor over the weight matrices that both reach (norms above 0); 0 if there is none.

    Matrix by matrix, because terms reach different depths: the norm over the whole student would compare a term of the
    encoder with what the task does in the decoder, and one large matrix would decide for all. An optimizer that
    normalises its steps (Adam) feels the ratio in each. NaN if a norm is not finite.
    """
    if not all(map(math.isfinite, (*own, *anchor))):
        return math.nan
    logs = [math.log(one / other) for one, other in zip(own, anchor, strict=True) if one > 0 and other > 0]
    return math.exp(sum(logs) / len(logs)) if logs else 0.0
