"""Ranks of the resizing tests: torch and deepspeed are imported once, every start is a fork for each rank.

Every line on standard input is one scenario (JSON): `ranks`, and either `program`, a command line of run.py, or
`engine`, a list of bare student engines. The answer is a line: exit codes, and what the ranks said.
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path

import tiny_models as tiny
import torch
from engine_worker_bench import Bench, PlainTeacher, rank_groups
from engine_worker_precision import fp16_on_cpu

from distill_engine import run
from distill_engine.assembly import launch as assemble  # noqa: F401  assemble: imported before the forks
from distill_engine.engine import distributed
from distill_engine.engine.config import OptimizerSection


def engine_start(variants: list[dict], teachers: Path) -> None:
    """Each variant: take up `load`, if there is one, take `steps` steps, and write `save`."""
    bench = Bench(distributed.start(), Path(), teachers)
    goal = tiny.objective()
    for variant in variants:
        optimizer = OptimizerSection(learning_rate=1e-3, **variant["optimizer"])
        with fp16_on_cpu():
            config = bench.student_ds(variant["ds_config"], **variant.get("blocks", {}))
            student = bench.student(tiny.student(teachers / "blenderbot", goal), config, optimizer)
        if "load" in variant:
            student.load(Path(variant["load"]))
        teacher = PlainTeacher(teachers / "blenderbot", student.dtype)
        for group in rank_groups(1, bench.ranks, 1, variant.get("steps", 0)):
            bench.take_step(student, teacher, goal, group, 1e-3)
        if "save" in variant:
            student.save(Path(variant["save"]))
    bench.ranks.barrier()


def rank_main(scenario: dict, rank: int, port: int, folder: Path) -> None:
    """One rank, in a process of its own."""
    size = str(scenario["ranks"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), LOCAL_WORLD_SIZE=size)
    log = os.open(folder / f"rank_{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 3
    try:
        if "program" in scenario:
            code = run.main(scenario["program"])
        else:
            engine_start(scenario["engine"], folder.parent / "teachers")
            code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def play(scenario: dict, folder: Path) -> dict:
    """Fork the ranks of a scenario, wait for all, and collect what they said."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(scenario["ranks"]):
        child = os.fork()
        if child == 0:
            rank_main(scenario, rank, port, folder)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = [(folder / f"rank_{rank}.log").read_text(errors="replace") for rank in range(scenario["ranks"])]
    return {"codes": codes, "said": said}


def main() -> None:
    answers = Path(sys.argv[1])
    torch.set_num_threads(1)
    tiny.save_teacher(answers / "teachers" / "blenderbot", "blenderbot")
    for number, line in enumerate(sys.stdin):
        print(json.dumps(play(json.loads(line), answers / str(number))), flush=True)


if __name__ == "__main__":
    main()
