"""Downloads and tokenising take as long as they take; collectives do not."""

import os
import socket
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("patient_worker.py")


def run_two(root: Path) -> list[tuple[int, str]]:
    """Exit code and output of both ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    common |= {"PYTHONPATH": str(root), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]
    return [(rank.wait(120), rank.communicate()[0]) for rank in ranks]


def test_a_rank_may_work_for_longer_than_collectives_wait(root):
    outcomes = run_two(root)
    assert [(code, said.strip().splitlines()[-1]) for code, said in outcomes] == [(0, "sum 2")] * 2
