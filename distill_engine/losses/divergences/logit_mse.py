"""Squared error of the logits themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_engine.losses.divergences.protocol import Divergence

if TYPE_CHECKING:
    from torch import Tensor

NEVER = -1000.0  # a logit that models set where an id is never predicted is far below, whatever their dtype


class LogitMSE(Divergence):
    """mean (s - t)^2 over the vocabulary (Ba & Caruana 2014; Kim et al. 2021 compare it with KL). Times the temperature
    squared, as all are, the temperature cancels out. Twice the limit of forward KL at high temperatures, up to what all
    logits of a token share."""

    meaning = "mean squared error of the logits; the temperature cancels out"
    of = "logits"
    twin = "distill_engine.losses.divergences.logit_mse_triton:value_and_slope"

    def value_and_slope(self, log_student: Tensor, log_teacher: Tensor) -> tuple[Tensor, Tensor]:
        """See Divergence; of logits. Two models of two dtypes have two numbers for "never predicted"."""
        difference = log_student - log_teacher
        difference = difference.masked_fill((log_student < NEVER) & (log_teacher < NEVER), 0.0)
        return difference.square(), 2.0 * difference


LOGIT_MSE = LogitMSE()
