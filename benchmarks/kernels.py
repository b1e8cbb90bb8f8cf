"""Time and memory of every loss implementation, next to this machine's own ceilings.

    python benchmarks/kernels.py [--only bb3b] [--dtype fp16|bf16|fp32] [--repeats 20] [--csv FILE]

One CSV row per case and implementation: eager (the formula as one would write it), compiled (the same under
torch.compile), reference (the product's whole-matrix path), and the fused path of this device (triton on a GPU,
chunked on a CPU). benchmarks/README.md explains the columns.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from kernel_cases import CASES, TINY, Case, Runner  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from distill_engine.telemetry.machine import machine_record  # noqa: E402

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
REPLAYABLE = ("eager", "reference")
MOST_COPIES = 4  # of a case's inputs
COLUMNS = (
    "case", "group", "implementation", "dtype", "milliseconds", "p20", "p80", "replayed_milliseconds",
    "times_faster_than_eager",
    "peak_extra_mib", "share_of_eager_memory", "gradients_mib", "share_beside_gradients", "gflops",
    "share_of_matmul_ceiling", "gigabytes_per_second", "share_of_copy_ceiling", "repeats", "device", "torch", "triton",
    "commit",
)  # fmt: skip


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(run: Any, device: torch.device) -> float:
    """Of one call: between two events on the device's own clock, or wall time on a CPU."""
    wait(device)
    if device.type == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after))
    started = time.perf_counter()
    run()
    wait(device)
    return 1e3 * (time.perf_counter() - started)


def peak_extra_bytes(run: Any, device: torch.device) -> int:
    """Most memory held at once beside what was held before; what is in `.grad` counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    held = peak = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def replayed_milliseconds(runner: Runner, name: str, device: torch.device, repeats: int) -> float | None:
    """Median of the same call replayed as a CUDA graph, without the host. None on a CPU, where the host makes arguments
    anew for each launch (triton, compiled), and where a capture is refused."""
    if device.type != "cuda" or name not in REPLAYABLE:
        return None
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            for _ in range(2):
                runner.run(name)
        torch.cuda.current_stream(device).wait_stream(stream)
        with torch.cuda.graph(graph):
            runner.run(name)
    except RuntimeError as error:
        sys.stderr.write(f"  {name} is not replayed: {str(error).splitlines()[0]}\n")
        return None
    return statistics.median(milliseconds(graph.replay, device) for _ in range(repeats))


def runners_of(case: Case, dtype: torch.dtype, device: torch.device) -> list[Runner]:
    """Copies of a case with inputs that take turns, so that none is found in a GPU's L2 cache; one on a CPU."""
    first = case.prepare(dtype, device)
    if device.type != "cuda":
        return [first]
    own = sum(leaf.numel() * leaf.element_size() for leaf in first.leaves)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    copies = min(MOST_COPIES, 1 + -(-2 * cache // max(own, 1)))
    return [first, *(case.prepare(dtype, device) for _ in range(copies - 1))]


class Ceilings:
    """What large products and large copies reach on this device, measured in this process."""

    def __init__(self, dtype: torch.dtype, device: torch.device, side: int) -> None:
        self.gflops = _best(lambda a, b: torch.mm(a, b), 2 * side**3 / 1e9, dtype, device, (side, side))
        length = side * side * 4
        self.gigabytes = _best(lambda a, b: a.copy_(b), 2 * length * dtype.itemsize / 1e9, dtype, device, (length,))


def _best(run: Any, work: float, dtype: torch.dtype, device: torch.device, shape: tuple[int, ...]) -> float:
    pair = [torch.randn(shape, device=device).to(dtype) for _ in range(2)]
    times = [milliseconds(lambda: run(*pair), device) for _ in range(8)]
    return 1e3 * work / min(times[2:])


def rows_of(case: Case, dtype: torch.dtype, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Measure one case: implementations take turns, so that other work on the machine slows all alike."""
    torch.compiler.reset()
    runners = runners_of(case, dtype, device)
    runner = runners[0]
    fused = "triton" if device.type == "cuda" else "chunked"
    names = ("eager", "compiled", "reference", fused)
    for name in names:
        for turn in range(3):
            runners[turn % len(runners)].run(name)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        for name in names:
            one = runners[turn % len(runners)]
            times[name].append(milliseconds(lambda name=name, one=one: one.run(name), device))
    memory = {name: peak_extra_bytes(lambda name=name: runner.run(name), device) for name in names}
    replayed = {name: replayed_milliseconds(runner, name, device, repeats) for name in names}
    eager = statistics.median(times["eager"])
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in runner.leaves)
    return [
        {
            "case": case.name,
            "group": case.group,
            "implementation": name,
            "milliseconds": _digits(statistics.median(times[name])),
            "p20": _digits(_quantile(times[name], 0.2)),
            "p80": _digits(_quantile(times[name], 0.8)),
            "times_faster_than_eager": _digits(eager / statistics.median(times[name])),
            "peak_extra_mib": _digits(memory[name] / 2**20),
            "share_of_eager_memory": _digits(memory[name] / max(memory["eager"], 1)),
            "gradients_mib": _digits(gradients / 2**20),
            "share_beside_gradients": _digits((memory[name] - gradients) / max(memory["eager"] - gradients, 1)),
            "gflops": _digits(1e3 * runner.work.gflop / statistics.median(times[name])),
            "gigabytes_per_second": _digits(1e3 * runner.work.gigabytes / statistics.median(times[name])),
            "replayed_milliseconds": "" if (found := replayed[name]) is None else _digits(found),
            "repeats": repeats,
        }
        for name in names
    ]


def _digits(value: float) -> float:
    """Four significant digits: times and rates span many orders of magnitude."""
    return float(f"{value:.4g}")


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))]


def measure(cases: tuple[Case, ...], dtype_name: str, device: torch.device, repeats: int) -> Iterator[dict[str, Any]]:
    """Row after row, ceilings and machine filled in."""
    dtype = DTYPES[dtype_name]
    ceilings = Ceilings(dtype, device, 8192 if device.type == "cuda" else 2048)
    machine = machine_record()
    name = machine["gpus"][0] if device.type == "cuda" else f"{machine['cpu']} x{torch.get_num_threads()}"
    for case in cases:
        sys.stderr.write(f"{case.name}\n")
        for row in rows_of(case, dtype, device, repeats):
            yield row | {
                "dtype": dtype_name,
                "share_of_matmul_ceiling": _digits(row["gflops"] / ceilings.gflops),
                "share_of_copy_ceiling": _digits(row["gigabytes_per_second"] / ceilings.gigabytes),
                "device": name,
                "torch": machine["versions"]["torch"],
                "triton": machine["versions"].get("triton", ""),
                "commit": machine.get("git", {}).get("commit", ""),
            }


def main() -> int:
    """Measure what the command line asks for; CSV to a file or standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name or group contains this")
    parser.add_argument("--tiny", action="store_true", help="the tests' shapes")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--csv", type=Path, default=None, help="file to write; default: standard output")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = tuple(c for c in (TINY if asked.tiny else CASES) if asked.only in c.name or asked.only in c.group)
    if not chosen:
        parser.error(f"no case contains {asked.only!r}; there are: {', '.join(c.name for c in CASES)}")
    dtype = asked.dtype or ("fp16" if device.type == "cuda" else "fp32")
    rows = measure(chosen, dtype, device, asked.repeats)
    if asked.csv is None:
        _write(rows, sys.stdout)
    else:
        with asked.csv.open("w", newline="", encoding="utf-8") as file:
            _write(rows, file)
    return 0


def _write(rows: Iterable[dict[str, Any]], file: Any) -> None:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    for row in rows:  # each as soon as it is measured: a run that is ended leaves what it has
        writer.writerow(row)
        file.flush()


if __name__ == "__main__":
    sys.exit(main())
