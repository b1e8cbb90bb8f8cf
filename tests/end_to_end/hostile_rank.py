"""The program in a world that is against it: HOSTILE names what, separated by commas. Started as run.py is.

blocked_group    the process group's end never returns, as NCCL's does when a rank is gone
defect           rank 1 meets a KeyError in step 3
blocked_load     rank 1 never comes back from loading the teacher, and the others wait for it no longer than 4 s
awaited_stop     step 3 of every rank waits until the launcher's end was noticed
"""

import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from distill_engine import run

hostile = os.environ["HOSTILE"].split(",")
rank = os.environ.get("RANK", "0")


def for_ever(*_: object, **__: object) -> None:
    threading.Event().wait()


if "blocked_group" in hostile:
    import torch.distributed

    from distill_engine.assembly import ending

    torch.distributed.destroy_process_group = for_ever
    ending.LEAVING_SECONDS = 1.0

if "defect" in hostile and rank == "1":
    from distill_engine.train.loop import Trainer

    plain_step = Trainer._step

    def step(trainer: Trainer) -> None:
        if trainer.progress.steps == 2:
            trainer.hooks.begins("in phase 'data' of optimizer step 3")
            raise KeyError("no such head")
        plain_step(trainer)

    Trainer._step = step

if "blocked_load" in hostile:
    from contextlib import contextmanager

    from distill_engine.engine import teacher_weights
    from distill_engine.engine.collectives import CollectiveCount
    from distill_engine.train import watchdog

    # 4 s from the moment at which nothing but a wait is left: imports and reading take their time on a busy machine
    limit, read = 4.0, threading.Event()
    plain_load, plain_checkpoint = teacher_weights._load, teacher_weights.Checkpoint
    plain_collective = CollectiveCount.__call__

    def blocked(*arguments: object, **named: object) -> object:
        if rank != "1":
            return plain_load(*arguments, **named)
        watchdog.LOADING_SECONDS = limit
        return for_ever()

    def checkpoint(folder: Path) -> object:
        made = plain_checkpoint(folder)
        read.set()
        return made

    @contextmanager
    def collective(count: CollectiveCount, name: str) -> object:
        with plain_collective(count, name):
            if read.is_set():
                watchdog.LOADING_SECONDS = limit
            yield

    teacher_weights._load, teacher_weights.Checkpoint = blocked, checkpoint
    CollectiveCount.__call__ = collective

if "awaited_stop" in hostile:
    from distill_engine.train.loop import Trainer
    from distill_engine.train.stop_request import StopRequest

    lost, plain_ask, plain_work = threading.Event(), StopRequest.ask, Trainer._step

    def ask(request: StopRequest) -> None:
        if threading.current_thread().name == "launcher-watch":
            lost.set()
        plain_ask(request)

    def work(trainer: Trainer) -> None:
        if trainer.progress.steps == 2:
            Path(os.environ["STEP_3"] + rank).touch()
            assert lost.wait(60), "the launcher lives"
        plain_work(trainer)

    StopRequest.ask, Trainer._step = ask, work

sys.exit(run.main())
