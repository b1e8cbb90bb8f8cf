"""A divergence that the package does not know: Jensen and Shannon's, symmetric and bounded by log 2."""

import math

from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.registry import register


class JensenShannon(Divergence):
    """Half of KL(teacher || mean) and half of KL(student || mean)."""

    meaning = "Jensen-Shannon divergence"

    def value_and_slope(self, log_student, log_teacher):
        mean = log_student.logaddexp(log_teacher) - math.log(2)
        student, teacher = log_student.exp() * (log_student - mean), log_teacher.exp() * (log_teacher - mean)
        return 0.5 * (student + teacher), 0.5 * student  # what the mean changes by cancels out


JENSEN_SHANNON = JensenShannon()
register("divergences", "jensen_shannon", "toy_divergence:JENSEN_SHANNON")
