"""Generalised Jensen-Shannon: both distributions against their mixture, between forward and reverse KL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from distill_engine.losses.divergences.forward_kl import FORWARD_KL
from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.losses.divergences.reverse_kl import REVERSE_KL
from distill_engine.recipe.section import Section

if TYPE_CHECKING:
    from torch import Tensor


class JensenShannonOptions(Section):
    """The mixture."""

    beta: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="The teacher's share of the mixture.")


class JensenShannon(Divergence):
    """beta KL(p_t || m) + (1 - beta) KL(p_s || m), m = beta p_t + (1 - beta) p_s (Agarwal et al. 2024, GKD).

    Over beta it becomes forward KL as beta goes to 0, over 1 - beta reverse KL as beta goes to 1; at 0 and 1, where it
    would vanish, it is those two. At 0.5 it is symmetric and at most log 2.
    """

    meaning = "generalised Jensen-Shannon (`beta`, by default 0.5: symmetric): 0 is forward KL, 1 reverse KL"
    Options = JensenShannonOptions
    twin = "distill_engine.losses.divergences.jensen_shannon_triton:value_and_slope"

    def __init__(self, beta: float = 0.5) -> None:
        self.number = beta

    def configured(self, options: Mapping[str, float]) -> Divergence:
        """See Divergence."""
        beta = JensenShannonOptions.model_validate(options).beta
        return {0.0: FORWARD_KL, 1.0: REVERSE_KL}.get(beta) or JensenShannon(beta)

    def value_and_slope(self, log_student: Tensor, log_teacher: Tensor) -> tuple[Tensor, Tensor]:
        """See Divergence. What the mixture changes by adds 1 - beta - (1 - beta) m / m to the slope: nothing."""
        beta = self.number
        log_mixture = (log_teacher + math.log(beta)).logaddexp(log_student + math.log1p(-beta))
        of_student = (1.0 - beta) * log_student.exp() * (log_student - log_mixture)
        return of_student + beta * log_teacher.exp() * (log_teacher - log_mixture), of_student


JENSEN_SHANNON = JensenShannon()
