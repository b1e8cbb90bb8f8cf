"""Starts the ranks of the engine tests: one start per number of ranks does many checks, many tests read the results."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("engine_worker.py")
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


def run_ranks(folder: Path, teachers: Path, world_size: int, root: Path) -> Engines:
    """Run engine_worker.py on so many ranks until all have ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    clean |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    clean |= {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    clean |= {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(WORKER), str(folder), str(teachers)]
    ranks = []
    for rank in range(world_size):
        with (folder / f"rank_{rank}.log").open("wb") as log:
            # strings hash differently in every process: sets must not decide the order of anything
            own = clean | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONHASHSEED": str(rank)}
            ranks.append(subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT, cwd=folder))
    _wait(ranks)
    return Engines(folder, world_size)


def _wait(ranks: list[subprocess.Popen]) -> None:
    """Until all have ended; when one fails the others would wait for it, so they are ended too."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while any(rank.poll() is None for rank in ranks):
        if any(rank.poll() for rank in ranks) or time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)


def _engines(world_size: int):
    @pytest.fixture(scope="session", name=f"on_{world_size}")
    def fixture(tmp_path_factory, teachers, root):
        folder = tmp_path_factory.mktemp(f"ranks_{world_size}")
        return run_ranks(folder, teachers["bart"].parent, world_size, root)

    return fixture


on_1, on_2, on_3 = (_engines(world_size) for world_size in (1, 2, 3))
