"""Feature terms that fade: they help a student to begin, and late in training they keep one with fewer layers from what
its labels ask for. TinyBERT (Jiao et al., 2020) learns from layers first and from predictions afterwards; here the one
becomes the other little by little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_STAIRS = 64


@dataclass(frozen=True)
class Fade:
    """Factors of the terms' weights as a function of the step alone, so that resuming needs no state.

    fading  every term that is used -> whether it fades
    steps   the factor of those that fade falls linearly from 1 at step 0 to 0 at this step, in stairs: weights that
            changed are copied to the device, which waits
    """

    fading: Mapping[str, bool]
    steps: int

    def factors(self, step: int, others: Mapping[str, float] | None) -> dict[str, float]:
        """Term -> factor at a step (0-based), each times that of `others`; None: 1."""
        left = max(0, _STAIRS - _STAIRS * step // self.steps) / _STAIRS
        return {
            term: (left if fades else 1.0) * (1.0 if others is None else others[term])
            for term, fades in self.fading.items()
        }
