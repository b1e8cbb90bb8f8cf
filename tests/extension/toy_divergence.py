"""A divergence that the package does not know: K-divergence, bounded by log 2."""

import math

from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.registry import register


class KDivergence(Divergence):
    """KL(student || mean of both)."""

    meaning = "K-divergence"

    def value_and_slope(self, log_student, log_teacher):
        mean = log_student.logaddexp(log_teacher) - math.log(2)
        student, ratio = log_student.exp(), log_student - mean
        return student * ratio, student * (ratio + 1 - 0.5 * (log_student - mean).exp())


K_DIVERGENCE = KDivergence()
register("divergences", "k_divergence", "toy_divergence:K_DIVERGENCE")
