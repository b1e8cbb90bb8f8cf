"""Joining a process group: cores, devices, and what is refused."""

from __future__ import annotations

import pytest

from distill_engine.cluster.facts import LOOPBACK, ClusterFacts
from distill_engine.engine import distributed
from distill_engine.engine.distributed import LaunchError, _choose_device, _share_cores


def facts(local_rank: int = 0, local_size: int = 1) -> ClusterFacts:
    return ClusterFacts(local_rank, local_size, local_rank, local_size, 0, 1, LOOPBACK, 0, "srun", "slurm-1.0.0")


def test_the_cores_of_a_node_are_divided_among_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for size in (4, 32, 1):
        _share_cores(facts(local_size=size))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    _share_cores(facts(local_size=4))
    assert chosen == [4, 1, 16]


class Accelerator:
    """An accelerator with a number of devices."""

    def __init__(self, devices: int) -> None:
        self.devices, self.chosen = devices, -1

    def device_name(self) -> str:
        return "cuda"

    def device_count(self) -> int:
        return self.devices

    def set_device(self, number: int) -> None:
        self.chosen = number


def test_a_rank_takes_the_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(4)
    monkeypatch.setattr(distributed, "get_accelerator", lambda: accelerator)
    _choose_device(facts(3, 4))
    assert accelerator.chosen == 3


@pytest.mark.parametrize(("devices", "advice"), [(1, "--gpus-per-task"), (2, "one rank per device")])
def test_too_few_devices_are_refused(monkeypatch: pytest.MonkeyPatch, devices: int, advice: str) -> None:
    monkeypatch.setattr(distributed, "get_accelerator", lambda: Accelerator(devices))
    with pytest.raises(LaunchError, match=f"wants device 2, but shown here are {devices}.*{advice}"):
        _choose_device(facts(2, 4))


def test_a_contradictory_environment_is_a_launch_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match="not RANK, LOCAL_RANK"):
        distributed.start()
