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

_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 0.5
_NAMED = 8  # ranks in one message


class AbsentError(RuntimeError):
    """Ranks did not come; the text names them."""


def call_roll(store: Any, subject: str, rank: int, world_size: int, seconds: float) -> list[int]:
    """Leave this rank's mark and wait for those of all others; the ranks that left none within `seconds`.

    `subject` must be used once in the life of the store. [0] also when the store itself, which lives in rank 0's
    process, does not answer.
    """
    seen = [[0]]  # what is known so far: nothing but that the store does not answer

    def ask() -> None:
        deadline, pause = time.monotonic() + seconds, _POLL_SECONDS
        left = list(range(world_size))
        with suppress(RuntimeError):  # rank 0 has left with the store: what was seen last is what there is to say
            store.set(f"{subject}/{rank}", b"here")
            while left and time.monotonic() < deadline:
                left = [other for other in left if not store.check([f"{subject}/{other}"])]
                seen.append(left)
                time.sleep(pause if left else 0.0)
                pause = min(2 * pause, _LONGEST_POLL_SECONDS)
        if rank == 0 and left:
            time.sleep(2 * _LONGEST_POLL_SECONDS)  # the others look once more

    _within(ask, seconds + 4 * _LONGEST_POLL_SECONDS)
    return seen[-1]


def describe(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """`rank 3 (gpu07), rank 4 (gpu07)`; only the number where the node is not known."""
    named = [f"rank {rank}" + (f" ({hosts[rank]})" if rank < len(hosts) and hosts[rank] else "") for rank in ranks]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more


def exclude(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """What to do about bad ranks."""
    nodes = list(dict.fromkeys(hosts[rank] for rank in ranks if rank < len(hosts) and hosts[rank]))
    return f"Exclude {', '.join(nodes)} (sbatch --exclude={','.join(nodes)}) or repair it." if nodes else "Repair it."


def _within(action: Callable[[], None], seconds: float) -> None:
    """Run it in a thread that is left behind when it does not return: a store's own calls may wait for ever."""
    thread = threading.Thread(target=action, name="roll-call", daemon=True)
    thread.start()
    thread.join(seconds)
