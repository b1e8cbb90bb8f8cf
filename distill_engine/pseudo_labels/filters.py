"""Which generated texts are kept: by length and repetition, and by any metric of texts against the gold text.

Kim and Rush 2016 train on all of a teacher's text; Gandhi et al. 2023 leave out what is far from gold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_engine.evaluate.samples import token_repetition
from distill_engine.metrics.named import text_metrics
from distill_engine.metrics.protocol import TextMetric
from distill_engine.recipe.problem import did_you_mean


class FilterError(ValueError):
    """A filter that cannot be applied; the text says what to do."""


@dataclass(frozen=True)
class Limit:
    """A metric of one text against its gold text, and how much it may (`most`) or must (else) be."""

    metric: TextMetric
    bound: float
    most: bool

    @property
    def name(self) -> str:
        """In counts and summaries."""
        return f"{self.metric.name} {'above' if self.most else 'below'} {self.bound:g}"

    def keeps(self, text: str, gold: str) -> bool:
        """Whether the text is within it."""
        value = self.metric.value([text], [[gold]])
        return value <= self.bound if self.most else value >= self.bound


@dataclass(frozen=True)
class Filters:
    """Texts are left out that are empty, and, where these are set, that

    length_ratio  have more than N times the characters of the gold text, or fewer than 1/N of them
    repetition    have said a larger share of their token 3-grams before
    limits        break one of these
    """

    length_ratio: float | None = None
    repetition: float | None = None
    limits: tuple[Limit, ...] = ()

    def reason(self, text: str, gold: str, tokenizer: Any) -> str:
        """The first filter that leaves the text out; empty where it is kept."""
        if not text.strip():
            return "empty"
        lengths = len(text), len(gold)
        if self.length_ratio is not None and max(lengths) > self.length_ratio * min(lengths):
            return f"length ratio above {self.length_ratio:g}"
        if self.repetition is not None and token_repetition(tokenizer, text) > self.repetition:
            return f"repetition above {self.repetition:g}"
        return next((limit.name for limit in self.limits if not limit.keeps(text, gold)), "")


def parse_limits(at_most: Sequence[str], at_least: Sequence[str]) -> tuple[Limit, ...]:
    """`METRIC=NUMBER` texts -> limits. Raises FilterError for another form, an unknown metric, or one whose library is
    not there."""
    most = [_limit("--at-most", one, True) for one in at_most]
    return (*most, *(_limit("--at-least", one, False) for one in at_least))


def _limit(option: str, given: str, most: bool) -> Limit:
    known = {metric.name: metric for metric in text_metrics()}
    name, _, number = (part.strip() for part in given.partition("="))
    if name not in known:
        close = did_you_mean(name, list(known))
        raise FilterError(f"{option} {given!r}: metrics of texts are {', '.join(known)}. {close}".rstrip())
    if reason := known[name].missing():
        raise FilterError(f"{option} {given!r}: {name} {reason}.")
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise FilterError(f"{option} {given!r}: {number!r} is no number. Write {option} {name}=0.3.")
    return Limit(known[name], bound, most)
