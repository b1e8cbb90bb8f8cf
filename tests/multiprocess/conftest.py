"""Starts the ranks of the engine tests: one start per number of ranks does many checks, many tests read the results.

And those of the checkpoint tests: a small run without engines, forked from a warm process for every scenario.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from warm import Run, Warm

WORKER = Path(__file__).with_name("engine_worker.py")
CHECKPOINT_WORKER = Path(__file__).with_name("checkpoint_worker.py")
STEPS = 6  # of the small run with checkpoints
LIMIT_SECONDS = 400  # of one start; a free machine needs a tenth of that
FOREIGN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "OMPI_")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.multiprocess)


class Engines:
    """What the ranks of one start found out."""

    def __init__(self, folder: Path, world_size: int) -> None:
        self._folder = folder
        self._world_size = world_size

    def __call__(self, check: str) -> list[dict]:
        """The results of one check, one dict per rank."""
        import torch

        files = [self._folder / f"{check}.rank_{rank}.pt" for rank in range(self._world_size)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            pytest.fail(f"the ranks left no {', '.join(missing)}:\n{self.said()}")
        return [torch.load(file, weights_only=False) for file in files]

    def said(self) -> str:
        return "\n".join(log.read_text()[-6000:] for log in sorted(self._folder.glob("*.log")))


def run_ranks_from(
    warm: tuple[Warm, Warm], command: list[str], folder: Path, world_size: int, root: Path, nodes: int = 1
) -> list[int]:
    """Run a worker on so many ranks until all have ended; the environment says that they are of `nodes`. Returns exit
    codes; what rank N printed is in rank_N.log. Ranks are forked in turn from two processes in which strings hash
    differently, as they do in every process: sets must not decide the order of anything."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    clean |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    clean |= {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    clean |= {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for number, one in enumerate(warm):
        one.prepare(clean | {"PYTHONHASHSEED": str(number)})
    for one in warm:
        one.await_ready()
    ranks = []
    for rank in range(world_size):
        node, local_rank = divmod(rank, world_size // nodes)
        own = clean | {"RANK": str(rank), "LOCAL_RANK": str(local_rank)}
        own |= {"LOCAL_WORLD_SIZE": str(world_size // nodes), "GROUP_RANK": str(node)}
        log = folder / f"rank_{rank}.log"
        ranks.append(warm[rank % 2].start(command, own, folder, log, log))
    _wait(ranks)
    return [rank.wait() for rank in ranks]


def _wait(ranks: list[Run]) -> None:
    """Until all have ended; when one fails the others would wait for it, so they are ended too."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while any(rank.poll() is None for rank in ranks):
        if any(rank.poll() for rank in ranks) or time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)


@pytest.fixture(scope="session")
def run_ranks(make_warm):
    """Starts the ranks of a worker."""
    return partial(run_ranks_from, (make_warm(), make_warm()))


def _engines(world_size: int, nodes: int = 1, checks: tuple[str, ...] = (), also: str = ""):
    """`checks`: of all those only these, in a start of their own, whose fixture has `also` in its name."""
    name = (f"on_{world_size}" if nodes == 1 else f"on_{nodes}_nodes") + also

    @pytest.fixture(scope="session", name=name)
    def fixture(tmp_path_factory, teachers, root, run_ranks):
        folder = tmp_path_factory.mktemp(f"ranks_{world_size}{also}_")
        run_ranks([str(WORKER), str(folder), str(teachers["bart"].parent), *checks], folder, world_size, root, nodes)
        return Engines(folder, world_size)

    return fixture


on_1, on_2, on_3 = (_engines(world_size) for world_size in (1, 2, 3))
on_2_nodes = _engines(4, nodes=2)
on_2_folders = _engines(2, checks=("folders.found", "folders.refused"), also="_folders")
on_2_families = _engines(2, checks=("families.matrix", "families.shared"), also="_families")


# ---- a small run with checkpoints, whose ranks are forked from one warm process -----------------------------------


class CheckpointServer:
    """The worker process; `play` runs one scenario in it."""

    def __init__(self, answers: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CHECKPOINT_WORKER), str(answers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        )

    def play(self, folder: Path, **scenario) -> dict:
        self.process.stdin.write(json.dumps({"folder": str(folder), "steps": STEPS, **scenario}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the worker died"
        return json.loads(line)

    def finals(self, folder: Path, **scenario) -> list[dict]:
        """Final state of every rank of a run that must end well."""
        answer = self.play(folder, **scenario)
        assert set(answer["codes"]) == {0}, answer
        return [report["final"] for report in answer["reports"]]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = CheckpointServer(tmp_path_factory.mktemp("answers"))
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=30)


@pytest.fixture(scope="session")
def undisturbed(server, tmp_path_factory) -> list[dict]:
    return server.finals(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def finished_at_4(server, tmp_path_factory) -> Path:
    """A run stopped after step 4, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("finished")
    server.finals(folder, steps=4)
    found = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert found == ["latest", "step-00000002", "step-00000004"]
    return folder


@pytest.fixture
def stopped(finished_at_4, tmp_path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(finished_at_4, folder)
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB of its own."""
    yield from mounted(tmp_path / "disk", "4m")


@pytest.fixture
def roomy_disk(tmp_path):
    """A file system of 16 MiB of its own: W&B's service needs some of it for itself."""
    yield from mounted(tmp_path / "disk", "16m")


def mounted(folder: Path, size: str):
    """The folder as a file system of its own, until the test has ended."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
