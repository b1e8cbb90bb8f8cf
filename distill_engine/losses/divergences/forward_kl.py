"""KL(teacher || student): the student covers everything that the teacher finds likely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_engine.losses.divergences.protocol import Divergence

if TYPE_CHECKING:
    from torch import Tensor


class ForwardKL(Divergence):
    """sum p_t (log p_t - log p_s). The kernels have a way of their own for it, in one pass together with the task."""

    meaning = "forward KL, the default: the student covers all that the teacher finds likely"

    def value_and_slope(self, log_student: Tensor, log_teacher: Tensor) -> tuple[Tensor, Tensor]:
        """See Divergence."""
        teacher = log_teacher.exp()
        return teacher * (log_teacher - log_student), -teacher


FORWARD_KL = ForwardKL()
