"""The processes of a run as rooms see them that know no torch.distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Ranks(Protocol):
    """A process group, seen from one of its ranks; the engine implements it over torch.distributed.

    Calls are collective, and raise when a rank is gone: the caller lets that end the process. Values are small and
    picklable.
    """

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def world_size(self) -> int:
        """How many processes there are."""

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in rank order, on every rank."""

    def broadcast(self, value: T) -> T:
        """Rank 0's value on every rank."""


class Alone:
    """A process that no launcher has given company."""

    rank = 0
    world_size = 1

    def gather(self, value: T) -> list[T]:
        """It alone."""
        return [value]

    def broadcast(self, value: T) -> T:
        """It is rank 0."""
        return value


def first_of(names: Sequence[object], most: int) -> str:
    """`a, b and 7 more`, of ranks, nodes and the like: at most so many by name, and how many there are besides."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
