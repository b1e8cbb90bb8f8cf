"""What a divergence between two next-token distributions is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from distill_engine.recipe.section import Section

if TYPE_CHECKING:
    from torch import Tensor


class Divergence(Protocol):
    """A sum over the vocabulary of a function of log p_student and log p_teacher.

    Called by losses/kernels with whole distributions, or with one block of the vocabulary at a time: once in the
    forward pass for its value and once in the backward pass for its slope. It is this small because the kernels do the
    rest: softmax, temperature, mask, and the way from log-probabilities back to logits. That is also why it is
    pointwise: an entry of the result depends on the same entry of the arguments alone.

    meaning  half a sentence for tables
    Options  keys of losses.divergence_options, with their defaults and ranges; none by default
    of       what `value_and_slope` gets: log-probabilities or the logits, both over the temperature. Of logits the
             divergence is the mean over the vocabulary, not the sum
    twin     `module:function` of the same in Triton (a module that may import it), or empty: torch on every device
    number   what the twin is given besides, such as an option
    """

    meaning: str
    Options: type[Section] = Section
    of: Literal["log_probabilities", "logits"] = "log_probabilities"
    twin: str = ""
    number: float = 0.0

    def configured(self, options: Mapping[str, float]) -> Divergence:
        """The same with these options, which are valid (`Options`)."""
        assert not options, "a divergence with Options has a `configured` of its own"
        return self

    def value_and_slope(self, log_student: Tensor, log_teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Of log-probabilities, float32 and of one shape, natural logarithm: every entry's part of the divergence, and
        the derivative of that part by log_student. Entries that are never predicted have about -1e20 in both."""
        ...
