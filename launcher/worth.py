"""Is another start worth it? Not where starts go on gaining fewer steps than their own beginning costs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

STARTS = 4  # in a row; one may have been unlucky


class Ended(Protocol):
    """A start that has ended: newest step then, seconds that it lasted, seconds of a step; 0 where unknown."""

    @property
    def step(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def pace(self) -> float: ...


def too_little(attempts: Sequence[Ended]) -> str:
    """Why no further start is worth it, empty where one is; `attempts` of one job, oldest first.

    A start's cost is the time in which it did not train: libraries, models, data, its last checkpoint.
    """
    steps = [-1, *(one.step for one in attempts)]
    gains = [max(0, after - max(0, before)) for before, after in pairwise(steps)]
    last = list(zip(attempts, gains, strict=True))[-STARTS:]
    if len(last) < STARTS or not all(one.seconds and one.pace for one, _ in last):
        return ""
    if any(gained * one.pace >= one.seconds / 2 for one, gained in last):
        return ""
    one, gained = last[-1]
    costs = one.seconds - gained * one.pace
    return (
        f"{STARTS} starts in a row gained fewer steps than their beginning costs: the last one {gained} in "
        f"{one.seconds:.0f} s, of which {costs:.0f} s were no training, the time of {costs / one.pace:.0f} steps. Ask "
        "for more time (sbatch --time), or a later warning (sbatch --signal=B:USR1@N)"
    )
