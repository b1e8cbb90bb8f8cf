"""Room on the disk for what a run will keep, computed from its own sizes before it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distill_engine.checkpoint.agreement import RankFailures, on_first_rank
from distill_engine.checkpoint.files import free_bytes, readable_bytes
from distill_engine.checkpoint.space import Space
from distill_engine.cluster.ranks import Ranks
from distill_engine.setup.run_folder import RunFolderError, reason_of


def check_space(folder: Path, ranks: Ranks, space: Space, say: Callable[[str], None]) -> None:
    """Tell rank 0's `say` what the run in `folder` needs beside what it has, and whether there is room. Collective.

    RunFolderError on all ranks if not even one checkpoint and one export fit; less than all is a warning, since
    others may free space, and a run may end before it needs it.
    """

    def look() -> None:
        needed, left = space.needed_in(folder), free_bytes(folder)
        line = f"{folder} needs {readable_bytes(needed)}, {readable_bytes(left)} are free: {space.words()}"
        if left < space.least:
            raise RunFolderError(
                f"The run folder {line}. Not even one of each fits. Free space, or choose another folder (--run-dir)."
            )
        if left < needed:
            rest = "Free space, or keep fewer (checkpoint.keep_last, keep_best, keep_every)"
            say(f"warning: {line}. Saves will fail when it is used up. {rest}")
        else:
            say(line)

    try:
        on_first_rank(ranks, look, lambda error: reason_of(error, folder))
    except RankFailures as failures:
        raise RunFolderError(failures.reasons[0]) from failures
