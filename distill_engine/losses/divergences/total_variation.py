"""Total variation distance: half the absolute difference of probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_engine.losses.divergences.protocol import Divergence

if TYPE_CHECKING:
    from torch import Tensor


class TotalVariation(Divergence):
    """sum |p_s - p_t| / 2, from 0 to 1 (Wen et al. 2023, f-divergences between sequences)."""

    meaning = "total variation distance: half the absolute difference of probabilities"
    twin = "distill_engine.losses.divergences.total_variation_triton:value_and_slope"

    def value_and_slope(self, log_student: Tensor, log_teacher: Tensor) -> tuple[Tensor, Tensor]:
        """See Divergence; at equal probabilities the slope is 0."""
        student = log_student.exp()
        difference = student - log_teacher.exp()
        return 0.5 * difference.abs(), 0.5 * difference.sign() * student


TOTAL_VARIATION = TotalVariation()
