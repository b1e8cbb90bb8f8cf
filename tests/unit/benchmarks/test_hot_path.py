"""benchmarks/hot_path.py: a training step waits for the device twice, however many micro-batches it has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hot_path_waits import HostWaits

ROOT = Path(__file__).resolve().parents[3]
HOST_WAITS = 2  # the gradient norm, and what the ranks agree on


@pytest.mark.multiprocess
def test_waits_of_a_step_do_not_grow_with_accumulation():
    pytest.importorskip("triton")  # whose kernels are counted
    command = [sys.executable, str(ROOT / "benchmarks" / "hot_path.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    assert set(result) == {"host_waits_per_step", "loss_launches_per_micro_batch", "collectives_per_step"}
    assert set(result["host_waits_per_step"]) == {"1", "8"}
    assert max(result["host_waits_per_step"].values()) <= HOST_WAITS, done.stderr[-3000:]
    assert min(result["host_waits_per_step"].values()) > 0, "a step that is never waited for was not counted"
    # the teacher's layers, the gradients' buckets, the new weights, and three small reductions
    assert 3 + 24 + 9 <= result["collectives_per_step"] <= 150, done.stderr[-3000:]


def test_every_way_to_read_the_device_counts():
    numbers = torch.arange(4.0)
    for read in (
        lambda: float(numbers[0]), lambda: bool((numbers > 1).any()), lambda: numbers.tolist(), lambda: numbers.numpy(),
        lambda: numbers.nonzero(), lambda: numbers[numbers > 1], lambda: torch.equal(numbers, numbers),
        lambda: torch.tensor([1.0], device=numbers.device), lambda: numbers.cpu(),
    ):  # fmt: skip
        with HostWaits() as counted:
            read()
        assert counted.total == 1, counted.found


def test_arithmetic_does_not_count():
    with HostWaits() as counted:
        numbers = torch.arange(4.0) * 2
        numbers[torch.tensor([0, 2])].sum().add_(1)
        numbers[1:].masked_fill_(numbers[1:] > 2, 0.0)
    assert counted.total == 0, counted.found
