"""`jensen_shannon` in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def value_and_slope(log_student: tl.tensor, log_teacher: tl.tensor, number: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Entry by entry, float32; number: beta, inside (0, 1)."""
    left, right = log_teacher + tl.log(number), log_student + tl.log(1.0 - number)
    larger = tl.maximum(left, right)
    log_mixture = larger + tl.log(tl.exp(left - larger) + tl.exp(right - larger))
    of_student = tl.exp(right) * (log_student - log_mixture)
    return of_student + tl.exp(left) * (log_teacher - log_mixture), of_student
