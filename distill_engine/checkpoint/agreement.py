"""Doing something on all ranks that may fail on one, so that all ranks learn of it and none waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from distill_engine.cluster.exit_codes import may_pass
from distill_engine.cluster.ranks import Ranks

T = TypeVar("T")
RANKS_NAMED = 4


class RankFailures(Exception):
    """An action failed on some ranks. Raised on every rank, with the reason of each that failed.

    may_pass  whether every one of the failures is of a kind that another start may not meet
    """

    def __init__(self, reasons: Mapping[int, str], may_pass: bool = False) -> None:
        super().__init__(reasons)
        self.reasons = dict(reasons)
        self.may_pass = may_pass

    def __str__(self) -> str:
        named = [f"rank {rank}: {reason}" for rank, reason in list(self.reasons.items())[:RANKS_NAMED]]
        more = len(self.reasons) - len(named)
        return "; ".join(named) + (f"; and {more} more ranks" if more else "")


def plain_reason(error: Exception) -> str:
    """An exception as one short sentence: its type, and its text if it has one."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def everywhere(ranks: Ranks, action: Callable[[], T], explain: Callable[[Exception], str] = plain_reason) -> list[T]:
    """Run `action` on this rank, wait for all ranks, and return what each returned.

    Collective: every rank calls it. If `action` raised on any rank, RankFailures is raised on all of them. An action
    that itself talks to other ranks must reach the same collective calls on every rank, also when it fails.
    """
    value, failure = None, None
    try:
        value = action()
    except Exception as error:  # whatever it is, the other ranks are waiting in `gather`
        failure = (explain(error), may_pass(error))
    outcomes: list[Any] = ranks.gather((value, failure))
    failures = {rank: failed for rank, (_, failed) in enumerate(outcomes) if failed is not None}
    if failures:
        reasons = {rank: reason for rank, (reason, _) in failures.items()}
        raise RankFailures(reasons, all(passing for _, passing in failures.values()))
    return [outcome for outcome, _ in outcomes]


def on_first_rank(ranks: Ranks, action: Callable[[], T], explain: Callable[[Exception], str] = plain_reason) -> T:
    """Run `action` on rank 0 only and return its value on every rank. Collective; fails like `everywhere`."""
    return everywhere(ranks, lambda: action() if ranks.rank == 0 else None, explain)[0]  # type: ignore[return-value]
