"""One rank of the engine tests: runs every check meant for this number of ranks and writes what it found.

Started by conftest.py. A check is a function from `Bench` to a dict; `<check>.rank_<r>.pt` holds it.
"""

import sys
import time
from pathlib import Path

import engine_worker_families as families
import engine_worker_folders as folders
import engine_worker_gradients as gradients
import engine_worker_placement as placement
import engine_worker_precision as precision
import engine_worker_rollouts as rollouts
import engine_worker_startup as startup
import engine_worker_teacher as teacher
import engine_worker_trainer as trainer
import engine_worker_validation as validation
import engine_worker_watching as watching
import torch
from engine_worker_bench import Bench

from distill_engine.engine import distributed

CHECKS = {
    1: [gradients.joined, validation.numbers, watching.balanced],
    2: [
        teacher.parity,
        teacher.head,
        teacher.growth,
        startup.refusals,
        startup.student_beside_leak,
        gradients.joined,
        gradients.parlai,
        gradients.single,
        gradients.order_of_calls,
        gradients.written_later,
        validation.numbers,
        trainer.not_finite,
        trainer.ranks_apart,
        trainer.stop_on_one_rank,
        trainer.hopeless,
        precision.poisoned,
        precision.fp16_story,
        precision.int8_story,
        precision.fp16_floor,
        watching.gradient_norms,
        watching.samples,
        watching.teacher_samples,
        watching.balanced,
        placement.losses,
        placement.window,
        rollouts.unequal,
        rollouts.mixture,
    ],
    3: [validation.numbers, trainer.ranks_apart],
    4: [placement.features, placement.losses, placement.unlike_files],
}

# Not among those of any number of ranks: they have a start of their own, in which they are named.
ALONE = [folders.found, folders.refused, families.matrix, families.shared]


def main() -> None:
    """Run the checks of this world size, or those named on the command line."""
    torch.set_num_threads(1)
    ranks = distributed.start()
    folder, teachers, *names = sys.argv[1:]
    bench = Bench(ranks, Path(folder), Path(teachers))
    for check in [*CHECKS[ranks.world_size], *(ALONE if names else [])]:
        name = f"{check.__module__.removeprefix('engine_worker_')}.{check.__name__}"
        if names and name not in names:
            continue
        started = time.perf_counter()
        found = check(bench)
        torch.save(found, bench.folder / f"{name}.rank_{ranks.rank}.pt")
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
    ranks.barrier()
    distributed.stop()


if __name__ == "__main__":
    main()
