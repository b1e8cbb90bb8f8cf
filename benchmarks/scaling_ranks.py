"""The training step at 1 and 2 ranks on this machine, in turns, with the machine's own ceilings beside it.

Three jobs stay alive: one rank; two ranks with as many examples each (weak scaling); two ranks that share them (strong
scaling). Every rank has one thread. One job works at a time while the others wait, round after round, so that what else
the machine does slows all alike. This file run as a program is one rank of a job; `measure` starts them.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve()
JOBS = {"one": (1, 1), "weak": (2, 1), "strong": (2, 2)}  # ranks, and by what a rank's examples are divided
_ELEMENTS = 2**20  # of the large all-reduce
_FOREIGN = ("RANK", "WORLD_", "LOCAL_", "MASTER_", "SLURM_", "OMPI_")


class Ranks:
    """A job that waits for orders."""

    def __init__(self, name: str, preset: str, log: IO[bytes]) -> None:
        self.name = name
        ranks, _ = JOBS[name]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        clean |= {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        clean |= {"MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, str(HERE), name, preset]
        self._processes = [
            subprocess.Popen(
                command, env=clean | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=log, text=True,
                stdin=subprocess.PIPE if rank == 0 else subprocess.DEVNULL, stdout=subprocess.PIPE,
            )
            for rank in range(ranks)
        ]  # fmt: skip

    def order(self, *words: object) -> Any:
        """What rank 0 answers. Raises RuntimeError if the job has ended."""
        first = self._processes[0]
        assert first.stdin is not None and first.stdout is not None
        try:
            first.stdin.write(" ".join(map(str, words)) + "\n")
            first.stdin.flush()
        except BrokenPipeError:
            pass
        answer = first.stdout.readline()
        if not answer:
            raise RuntimeError(f"the job {self.name!r} of {len(self._processes)} ranks has ended")
        return json.loads(answer)

    def end(self) -> None:
        """Let the ranks go; those that do not are killed."""
        if self._processes[0].stdin is not None:
            self._processes[0].stdin.close()
        for process in self._processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def measure(preset: str, rounds: int, steps: int) -> dict[str, Any]:
    """Medians of all rounds; raises SystemExit with what the ranks said if one of them fails."""
    with tempfile.TemporaryFile() as log:
        jobs: list[Ranks] = []
        try:
            for name in JOBS:
                jobs.append(Ranks(name, preset, log))
            for job in jobs:
                job.order("steps", 2)  # waits until it is built, and throws the first steps away
            by_name = {job.name: job for job in jobs}
            found = [_round(by_name, steps) for _ in range(rounds)]
        except RuntimeError as error:
            log.seek(0)
            raise SystemExit(f"{error}:\n{log.read()[-4000:].decode(errors='replace')}") from error
        finally:
            for job in jobs:
                job.end()
    return {name: _middle([one[name] for one in found]) for name in found[0]} | {"rounds": rounds, "steps": steps}


def _round(jobs: dict[str, Ranks], steps: int) -> dict[str, float]:
    """Seconds per step of each job, and the ceilings."""
    found = {f"seconds_{name}": job.order("steps", steps)["seconds"] for name, job in jobs.items()}
    found["gflops_one"] = jobs["one"].order("rate")["gflops"]
    both = jobs["weak"].order("rate")
    found |= {"gflops_two": both["gflops"], "latency": both["latency"], "bandwidth": both["bandwidth"]}
    return found


def _middle(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "median": statistics.median(ordered), "p20": ordered[round(0.2 * last)], "p80": ordered[round(0.8 * last)],
    }  # fmt: skip


# ---- one rank --------------------------------------------------------------------------------------------------------


def work(name: str, preset_name: str) -> None:
    """Carry out orders until the input ends; rank 0 answers each with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    sys.path.insert(0, str(HERE.parent))
    import step
    import torch
    from step_presets import PRESETS

    from distill_engine.engine import distributed

    ranks = distributed.start()
    torch.set_num_threads(1)
    preset = PRESETS[preset_name]
    preset = replace(preset, threads=1, batch=max(1, preset.batch // JOBS[name][1]))
    recipe = step.recipe_of(name, preset)
    rate = step.MatmulRate(torch.float32, ranks.device, side=512)
    with step.trainer_of(recipe, preset, step.ds_configs(recipe, "fp32", ranks), ranks) as trainer:
        while words := ranks.broadcast(sys.stdin.readline().split() if ranks.rank == 0 else None):
            result = _steps(trainer, int(words[1])) if words[0] == "steps" else _ceilings(ranks, rate)
            if ranks.rank == 0:
                answers.write(json.dumps(result) + "\n")
                answers.flush()
    distributed.stop()


def _steps(trainer: Any, count: int) -> dict[str, float]:
    trainer.ranks.barrier()
    started = time.perf_counter()
    for _ in range(count):
        trainer._step()
    trainer.ranks.barrier()
    return {"seconds": (time.perf_counter() - started) / count}


def _ceilings(ranks: Any, rate: Any) -> dict[str, float]:
    """Gflop/s of one rank while all multiply; seconds of a tiny all-reduce, bytes per second into a rank of a large."""
    import torch

    ranks.barrier()
    rate.samples.clear()
    rate.sample(products=40)
    gflops = statistics.mean(ranks.gather(rate.samples[0]))
    if ranks.world_size == 1:
        return {"gflops": gflops}
    small, large = (torch.ones(n) for n in (1, _ELEMENTS))
    latency = min(_seconds(ranks, small) for _ in range(20))
    seconds = statistics.median(_seconds(ranks, large) for _ in range(5))
    moved = 2 * (ranks.world_size - 1) / ranks.world_size * 4 * _ELEMENTS
    return {"gflops": gflops, "latency": latency, "bandwidth": moved / max(seconds - latency, 1e-9)}


def _seconds(ranks: Any, values: Any) -> float:
    started = time.perf_counter()
    ranks.sum(values)
    return time.perf_counter() - started


if __name__ == "__main__":
    work(*sys.argv[1:])
