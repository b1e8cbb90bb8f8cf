"""Runs of the real program, started as a user starts them, and what came of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO_RECIPE = ROOT / "recipes" / "demo.yaml"


@dataclass(frozen=True)
class Machine:
    """Where ranks run, and the DeepSpeed JSON that suits it."""

    ranks: int
    ds_config: Path


def this_machine() -> Machine:
    """Two ranks: on GPUs where there are any (fp16), else on the CPU.

    On a CPU in float32: bf16, which zero2.json falls back to there, is emulated by most CPUs and slower.
    """
    import torch

    if torch.cuda.is_available():
        return Machine(min(2, torch.cuda.device_count()), ROOT / "ds_configs" / "zero2.json")
    return Machine(2, ROOT / "ds_configs" / "zero2_fp32.json")


class RunFailedError(RuntimeError):
    """A run ended with an error."""


def start_run(run_dir: Path, machine: Machine, overrides: Sequence[str], quiet: bool = False) -> float:
    """One training run of the demo recipe through the deepspeed launcher; returns its seconds.

    Raises RunFailedError with what it printed last if it fails.
    """
    command = [
        str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(machine.ranks),
        "--master_port", str(free_port()), "--log_level", "error",
        str(ROOT / "distill_engine" / "run.py"), "--ds_config", str(machine.ds_config),
        "--recipe", str(DEMO_RECIPE), "--run-dir", str(run_dir),
    ]  # fmt: skip
    command += [part for override in overrides for part in ("--set", override)]
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    started = time.perf_counter()
    done = subprocess.run(
        command, env=environment, check=False, text=True, cwd=ROOT,
        stdout=subprocess.PIPE if quiet else None, stderr=subprocess.STDOUT if quiet else None,
    )  # fmt: skip
    if done.returncode != 0:
        last = "\n".join((done.stdout or "").splitlines()[-20:])
        raise RunFailedError(f"{' '.join(command)}\nended with code {done.returncode}\n{last}")
    return time.perf_counter() - started


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
