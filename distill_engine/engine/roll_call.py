"""Who is there? Asked over the store that the ranks share, which needs no collective and so no rank that answers.

A rank that never comes, or stands still, leaves the others in a collective that names nobody. Here each rank leaves a
mark, and whoever has left none when the time is up is named with its node.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from distill_engine.cluster.ranks import first_of

_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 0.5
_NAMED = 8  # ranks in one message
SAID_AFTER_SECONDS = 30.0  # a start from a busy file system takes that long and is no news


class AbsentError(RuntimeError):
    """Ranks did not come; the text names them."""


class Patience:
    """When a long wait is worth a line: after SAID_AFTER_SECONDS, then each time that twice as long has passed."""

    def __init__(self) -> None:
        self._begun, self._next = time.monotonic(), SAID_AFTER_SECONDS

    def waited(self) -> float:
        """Seconds so far when it is time for a line, else 0."""
        passed = time.monotonic() - self._begun
        if passed < self._next:
            return 0.0
        self._next = 2 * passed
        return passed


def call_roll(
    store: Any,
    subject: str,
    rank: int,
    world_size: int,
    seconds: float,
    tell: Callable[[list[int], float], None] | None = None,
) -> list[int]:
    """Leave this rank's mark and wait for those of all others; the ranks that left none within `seconds`.

    `subject` must be used once in the life of the store. [0] also when the store itself, which lives in rank 0's
    process, does not answer. `tell` hears now and then which ranks are missing, and for how many seconds.
    """
    seen = [[0]]  # what is known so far: nothing but that the store does not answer

    def ask() -> None:
        deadline, pause, patience = time.monotonic() + seconds, _POLL_SECONDS, Patience()
        left = list(range(world_size))
        with suppress(RuntimeError):  # rank 0 has left with the store: what was seen last is what there is to say
            store.set(f"{subject}/{rank}", b"here")
            while left and time.monotonic() < deadline:
                left = [other for other in left if not store.check([f"{subject}/{other}"])]
                seen.append(left)
                if left and tell is not None and (waited := patience.waited()):
                    tell(left, waited)
                time.sleep(pause if left else 0.0)
                pause = min(2 * pause, _LONGEST_POLL_SECONDS)
        if rank == 0 and left:
            time.sleep(2 * _LONGEST_POLL_SECONDS)  # the others look once more

    _within(ask, seconds + 4 * _LONGEST_POLL_SECONDS)
    return seen[-1]


def describe(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """`rank 3 (gpu07), rank 4 (gpu07)`; only the number where the node is not known."""
    named = [f"rank {rank}" + (f" ({hosts[rank]})" if rank < len(hosts) and hosts[rank] else "") for rank in ranks]
    return first_of(named, _NAMED)


def exclude(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """What to do about bad ranks."""
    nodes = list(dict.fromkeys(hosts[rank] for rank in ranks if rank < len(hosts) and hosts[rank]))
    return f"Exclude {', '.join(nodes)} (sbatch --exclude={','.join(nodes)}) or repair it." if nodes else "Repair it."


def _within(action: Callable[[], None], seconds: float) -> None:
    """Run it in a thread that is left behind when it does not return: a store's own calls may wait for ever."""
    thread = threading.Thread(target=action, name="roll-call", daemon=True)
    thread.start()
    thread.join(seconds)
