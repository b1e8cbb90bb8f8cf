"""What benchmarks/step.py says beside seconds: rates, memory and the plan's figure, what a profiler saw of a step."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hot_path_waits import HostWaits
from step_presets import GIGA, Preset
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from distill_engine.recipe.schema import Recipe
from launcher.job import Job
from launcher.memory_model import memory

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")  # beginnings: there are variants


class MatmulRate:
    """This process's rate of large square matrix products, sampled between the steps: what else the machine does
    slows both alike."""

    def __init__(self, dtype: torch.dtype, device: torch.device, side: int) -> None:
        self._a = torch.randn(side, side).to(device, dtype)
        self._b = torch.randn(side, side).to(device, dtype)
        self._out = torch.empty_like(self._a)
        self._gflop = 2 * side**3 / GIGA
        self.samples: list[float] = []

    def sample(self, products: int = 4) -> None:
        """Add the mean rate of some products."""
        wait(self._out.device)
        started = time.perf_counter()
        for _ in range(products):
            torch.mm(self._a, self._b, out=self._out)
        wait(self._out.device)
        self.samples.append(products * self._gflop / (time.perf_counter() - started))


def wait(device: torch.device) -> None:
    """Until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_mib(device: torch.device) -> float:
    """High-water mark: of the allocator on CUDA, of the resident process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def planned_memory_mib(
    recipe: Recipe, preset: Preset, configs: tuple[Mapping[str, Any], Mapping[str, Any]], ranks: int, per_node: int
) -> float:
    """What the launcher's plan says of the same run, without what CUDA and its libraries hold outside the allocator."""
    student, teacher = preset.shape(preset.student), preset.shape(preset.teacher)
    job = Job(recipe, student, teacher, *configs, ranks, per_node, preset.batch, recipe.batch.accumulation_steps)
    job = replace(job, triton=torch.cuda.is_available())
    return sum(size for item, size in memory(job).items() if item != "runtime") / 2**20


def profiled(step: Callable[[], None], device: torch.device) -> dict[str, float | None]:
    """Of one step: how often the host waits, how many kernels it launches, the share of its time in which any ran.

    On a CPU waits are counted as PyTorch dispatches them (hot_path_waits.py), and there is no more to say.
    """
    if device.type != "cuda":
        with HostWaits() as counted:
            step()
        return {"host_waits": counted.total, "launches": None, "busy_share": None}
    idle, _, _ = _recorded(lambda: None)  # what the profiler itself waits for
    waits, launches, busy = _recorded(step)
    return {"host_waits": waits - idle, "launches": launches, "busy_share": busy}


def _recorded(run: Callable[[], None]) -> tuple[int, int, float]:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return counts(recorded.profiler.kineto_results.events(), seconds)


def counts(events: list[Any], seconds: float) -> tuple[int, int, float]:
    """Waits and launches among a profiler's events, and the share of the seconds in which the device did anything."""
    names = [event.name() for event in events]
    spans = [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.device_type() == DeviceType.CUDA
    ]
    waits, launches = sum(name in WAITS for name in names), sum(name.startswith(LAUNCHES) for name in names)
    return waits, launches, together(spans) / 1e9 / seconds


def together(spans: list[tuple[int, int]]) -> int:
    """Length of the union of intervals (begin, end): kernels of several streams run beside each other."""
    covered = reached = 0
    for begin, end in sorted(spans):
        covered += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return covered


def given_seconds(file: Path) -> float:
    """The `seconds_per_step` of a JSON object. Raises SystemExit where there is none."""
    try:
        seconds = json.loads(file.read_text(encoding="utf-8"))["seconds_per_step"]
        if isinstance(seconds, (int, float)) and 0 < seconds < float("inf"):
            return float(seconds)
        found = f"its seconds_per_step is {seconds!r}"
    except OSError as error:
        found = str(error.strerror)
    except (ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
    rule = "It should hold a JSON object whose seconds_per_step is a number above 0, as this benchmark prints it."
    raise SystemExit(f"--against {file}: {found}. {rule}")
