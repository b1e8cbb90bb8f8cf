"""A small run with checkpoints, in real processes that tests can kill, fill up and start again.

Started once by the tests; torch is imported once. Every line on standard input is one scenario (JSON), run in freshly
forked ranks that talk over gloo; the answer is one line: exit code and report of every rank.

A run has per-rank numbers that depend on every random stream, on the sum over ranks and on all steps before: whatever
a checkpoint forgets shows in its final state.
"""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from distill_engine.checkpoint.checkpoints import Checkpoints
from distill_engine.checkpoint.faults import fault_point
from distill_engine.checkpoint.parts import JsonPart, RngPart
from distill_engine.checkpoint.retention import Retention
from distill_engine.setup.run_folder import RunLock, check_run_folder
from distill_engine.train.policies import EarlyStopping

DEAD_PEER_SECONDS = 20


class GlooRanks:
    """The ranks of this scenario over torch.distributed."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size

    def gather(self, value):
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


class Weights:
    """A part like DeepSpeed's: one tensor file per rank and collective calls inside save and load."""

    def __init__(self, ranks: GlooRanks, size: int) -> None:
        self.ranks = ranks
        self.values = torch.full((size,), float(ranks.rank))

    def save(self, folder: Path) -> None:
        failed = None
        try:
            fault_point("in_part")
            torch.save({"values": self.values}, folder / f"zero_rank_{self.ranks.rank}_states.pt")
        except (OSError, RuntimeError) as error:
            failed = error
        self.ranks.gather(None)
        if failed is not None:
            raise failed

    def load(self, folder: Path) -> None:
        path = folder / f"zero_rank_{self.ranks.rank}_states.pt"
        loaded = torch.load(path, weights_only=True) if path.exists() else None
        self.ranks.gather(None)
        if loaded is None:
            raise FileNotFoundError(path)
        self.values = loaded["values"]


def one_step(weights: Weights, stopping: EarlyStopping, step: int) -> None:
    """Uses all three random streams of this rank and the sum over ranks."""
    noise = torch.randn(()) + random.random() + float(np.random.standard_normal())
    mean = sum(weights.ranks.gather(float(weights.values[0] + noise))) / weights.ranks.world_size
    weights.values = weights.values * 0.9 + mean + noise
    if step % 3 == 0:
        stopping.observe(mean)


def run(scenario: dict, ranks: GlooRanks, report: dict) -> None:
    folder = Path(scenario["folder"])
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(100 + ranks.rank)
    if scenario.get("check_folder"):
        check_run_folder(folder, ranks, scenario.get("needed_bytes", 0))
    with RunLock(folder, ranks, wait_seconds=scenario.get("wait_seconds", 5.0)):
        train(scenario, ranks, folder, report)


def train(scenario: dict, ranks: GlooRanks, folder: Path, report: dict) -> None:
    report["warnings"] = []
    checkpoints = Checkpoints(
        folder / "checkpoints",
        ranks,
        identity=scenario.get("identity", {"recipe": "a"}),
        keep=Retention(scenario.get("keep_last", 2)),
        warn=report["warnings"].append,
        patience=scenario.get("patience", 30.0),
    )
    weights, stopping = Weights(ranks, scenario.get("size", 64)), EarlyStopping(5, "min")
    parts = {"student": weights, "stopping": JsonPart(stopping, ranks.rank), "random": RngPart(ranks.rank)}
    report["opened"] = watch_opening()
    resumed_from = checkpoints.resume(parts)
    report["opened"] = sorted(report["opened"])
    report["resumed_from"], report["saves"] = resumed_from, {}
    filler, save_every = folder / "filler", scenario.get("save_every", 2)
    for step in range((resumed_from or 0) + 1, scenario["steps"] + 1):
        one_step(weights, stopping, step)
        if step % save_every == 0:
            if step == scenario.get("fill_disk_at") and ranks.rank == 0:
                fill_disk(filler, scenario["leave_bytes"])
            hurt(scenario.get("hurt", {}).get(str(step)), folder, ranks)
            ranks.gather(None)
            save(checkpoints, step, parts, report, scenario.get("background", False))
            if ranks.rank == 0 and step != scenario.get("keep_disk_full_at"):
                filler.unlink(missing_ok=True)
        if step % save_every == 1:
            finish(checkpoints, report, wait=False)
    finish(checkpoints, report, wait=True)
    report["final"] = {
        "values": weights.values.tolist()[:8],
        "stopping": stopping.state_dict(),
        "next_random": [random.random(), float(np.random.standard_normal()), float(torch.randn(()))],
    }


def save(checkpoints: Checkpoints, step: int, parts: dict, report: dict, background: bool) -> None:
    """Note whether it succeeded; of one that is written in the background, `finish` does later."""
    if not background:
        report["saves"][step] = checkpoints.save(step, parts)
        return
    finish(checkpoints, report, wait=True)
    report["saves"][step] = "begun" if checkpoints.begin(step, parts) else False


def finish(checkpoints: Checkpoints, report: dict, wait: bool) -> None:
    outcome = checkpoints.finish(wait=wait)
    if outcome is not None:
        (step,) = [step for step, saved in report["saves"].items() if saved == "begun"]
        report["saves"][step] = outcome


def hurt(command: str | None, folder: Path, ranks: GlooRanks) -> None:
    """Let rank 0 do something to the run's folder, by a shell."""
    if command is not None and ranks.rank == 0:
        subprocess.run(command, shell=True, cwd=folder, check=True)


def fill_disk(filler: Path, leave_bytes: int) -> None:
    """Take all space of a small file system but `leave_bytes`."""
    facts = os.statvfs(filler.parent)
    with filler.open("wb") as file:
        file.write(bytes(facts.f_bavail * facts.f_frsize - leave_bytes))


def watch_opening() -> list[str]:
    """Names of the shards that this process opens from now on, as often as it does."""
    opened: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).endswith("_states.pt"):
            opened.append(Path(str(arguments[0])).name)

    sys.addaudithook(hook)
    return opened


def hide(name: str, looks: int) -> None:
    """This process does not see a file of that name the first times it looks, as a node whose network file system
    still holds what it knew before the file was written."""
    left, plain = [looks], Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if path.name == name and left[0] > 0:
            left[0] -= 1
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return plain(path)

    Path.lstat = lstat


def kill_at_file_operation(count: int, folder: Path) -> None:
    """SIGKILL this process just before its `count`-th file operation below `folder`."""
    left = [count]
    operations = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.listdir"}

    def hook(event: str, arguments: tuple) -> None:
        if event in operations and str(folder) in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def rank_main(scenario: dict, rank: int, world_size: int, answer: Path) -> None:
    """One rank, in its own process. Ends with code 0, 3 for an error, or by SIGKILL."""
    os.environ.update(RANK=str(rank), DISTILL_FAULT=scenario.get("fault", ""))
    report: dict = {}
    code = 0
    try:
        if world_size > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{answer}/rendezvous",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=DEAD_PEER_SECONDS),
            )
        if scenario.get("late", {}).get("rank") == rank:
            hide(scenario["late"]["name"], scenario["late"]["looks"])
        if "kill_at" in scenario:
            kill_at_file_operation(scenario["kill_at"], Path(scenario["folder"]))
        os.seteuid(scenario.get("user", os.getuid()))
        run(scenario, GlooRanks(rank, world_size), report)
    except Exception as error:
        report["error"] = f"{type(error).__name__}: {error}"
        code = 3
    os.seteuid(os.getuid())
    (answer / f"rank_{rank}.json").write_text(json.dumps(report))
    os._exit(code)


def play(scenario: dict, answer: Path) -> dict:
    """Fork the ranks of a scenario, wait for all, and collect what they say."""
    answer.mkdir()
    world_size = scenario.get("world_size", 2)
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            rank_main(scenario, rank, world_size, answer)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    reports = []
    for rank in range(world_size):
        with contextlib.suppress(FileNotFoundError):
            reports.append(json.loads((answer / f"rank_{rank}.json").read_text()))
            continue
        reports.append(None)
    return {"codes": codes, "reports": reports}


def main() -> None:
    answers = Path(sys.argv[1])
    torch.set_num_threads(1)
    for number, line in enumerate(sys.stdin):
        print(json.dumps(play(json.loads(line), answers / str(number))), flush=True)


if __name__ == "__main__":
    main()
