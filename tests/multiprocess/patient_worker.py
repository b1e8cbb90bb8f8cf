"""One of two ranks whose work before training takes longer than their collectives wait."""

import sys
import time
from datetime import timedelta

import torch

from distill_engine.engine import distributed

LIMIT = timedelta(seconds=5)


def main() -> None:
    """Rank 1 waits for rank 0."""
    ranks = distributed.start(timeout=LIMIT)
    with ranks.unhurried("work"):
        if ranks.rank == 0:
            time.sleep(1.4 * LIMIT.total_seconds())  # in a collective the other rank would have given up
    total = ranks.sum(torch.ones(1))
    sys.stdout.write(f"sum {int(total)}\n")
    distributed.stop()


if __name__ == "__main__":
    main()
