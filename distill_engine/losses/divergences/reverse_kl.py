"""KL(student || teacher): the student keeps away from what the teacher finds unlikely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_engine.losses.divergences.protocol import Divergence

if TYPE_CHECKING:
    from torch import Tensor


class ReverseKL(Divergence):
    """sum p_s (log p_s - log p_t); generated text profits most (Gu et al. 2024, MiniLLM)."""

    meaning = "reverse KL: the student keeps away from what the teacher finds unlikely"
    twin = "distill_engine.losses.divergences.reverse_kl_triton:value_and_slope"

    def value_and_slope(self, log_student: Tensor, log_teacher: Tensor) -> tuple[Tensor, Tensor]:
        """See Divergence."""
        student, ratio = log_student.exp(), log_student - log_teacher
        return student * ratio, student * (ratio + 1.0)


REVERSE_KL = ReverseKL()
