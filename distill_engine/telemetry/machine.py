"""What a run ran on: hardware, versions and source state, without naming the machine or its user."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from distill_engine.arithmetic import products

_PACKAGES = ("distill-engine", "torch", "deepspeed", "transformers", "tokenizers", "triton", "wandb")
_GIT_TIMEOUT_SECONDS = 10.0


def machine_record(checkout: Path | None = None) -> dict[str, Any]:
    """A JSON-ready record for W&B's config and model cards; no host name, no path, no user.

    `versions` holds the packages that are installed; `git` is absent outside a checkout. `checkout` is any
    folder of the source tree, by default this package's own.
    """
    record: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": _versions(),
        "cpu": _cpu_model(),
        "cpu_cores": _usable_cores(),
        "float32_products": products.library(),  # of the CPU: with the other one, last bits differ
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }
    git = _git_state(checkout or Path(__file__).resolve().parent)
    return {**record, "git": git} if git else record


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores this process may use, which under a scheduler are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _git_state(folder: Path) -> dict[str, Any] | None:
    commit = _git(folder, "rev-parse", "HEAD")
    # An installed copy may lie inside somebody else's checkout (a virtual environment often does).
    if commit is None or _git(folder, "ls-files", "--error-unmatch", ".") is None:
        return None
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, or None when there is no git, no checkout, or no answer."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
