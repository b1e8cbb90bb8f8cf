"""`reverse_kl` in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def value_and_slope(log_student: tl.tensor, log_teacher: tl.tensor, number: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Entry by entry, float32."""
    student, ratio = tl.exp(log_student), log_student - log_teacher
    return student * ratio, student * (ratio + 1.0)
