"""A teacher of which only the most probable tokens are known one by one, beside a student: the rest is compared as one.

Spreading what remains evenly over all other tokens would teach the student that they are equally likely, which biases
it (Anshumann et al. 2025, "Sparse Logit Sampling", who call one bucket for the rest a ghost token). Spread as the
student's own probabilities lie, only the sum of the rest is learnt: every divergence that adds up f(p, q) with one
ratio p / q over the rest (KL both ways, Jensen-Shannon, total variation) then has the value and the gradient that it
has with the rest as a single token, and no kernel needs to know.

At another temperature than 1 the ratio is still one, but how much the teacher's rest holds there depends on its shape,
which is not known: it is what a rest of the teacher's sum and the student's shape holds. A student that has the
teacher's probabilities for the tokens kept still has nothing to learn, and no other student has.
"""

from __future__ import annotations

import math

from torch import Tensor


def beside_student(teacher_logits: Tensor, kept: Tensor, student_logits: Tensor) -> Tensor:
    """[B, T, V] float32, no gradient: the teacher's logits at the tokens `kept` [B, T, k], and elsewhere the student's
    [B, T, V], moved so that they hold the probability that the teacher's hold there (temperature 1)."""
    teacher = teacher_logits.float()
    rest = teacher.scatter(-1, kept, -math.inf).logsumexp(dim=-1, keepdim=True)  # first: one large copy at a time
    moved = student_logits.detach().float().scatter(-1, kept, -math.inf)
    moved += rest - moved.logsumexp(dim=-1, keepdim=True)
    return moved.scatter_(-1, kept, teacher.gather(-1, kept))
