"""Runs of the real program, started as a user starts them, and what came of them."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEMO_RECIPE = ROOT / "recipes" / "demo.yaml"
_TIMED = "time/seconds_per_step"


@dataclass(frozen=True)
class Machine:
    """Where ranks run, and the DeepSpeed JSON that suits it."""

    ranks: int
    ds_config: Path


def options_over_seeds(
    about: str | None, name: str, recipe: str | None = None, ranks: int | None = None
) -> argparse.ArgumentParser:
    """What comparisons over seeds are asked for alike; their runs and results are called `name`.

    recipe  what is done with --recipe; None: it is the demo's
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if recipe is not None:
        parser.add_argument("--recipe", type=Path, default=DEMO_RECIPE, help=recipe)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 to N")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value",
                        help="change one value of the recipe in all runs")  # fmt: skip
    parser.add_argument("--ranks", type=int, default=ranks, help=f"ranks of a run (default: {ranks or 'as the demo'})")
    parser.add_argument("--ds-config", type=Path, default=None, help="DeepSpeed JSON (default: as the demo)")
    parser.add_argument("--no-run", action="store_true", help="only use what is complete")
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / name, help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}_demo.json")
    return parser


def this_machine(ranks: int | None = None, ds_config: Path | None = None) -> Machine:
    """So many ranks, else two: on GPUs where there are any (fp16), else on the CPU. ds_config: another JSON than that.

    On a CPU in float32: bf16, which zero2.json falls back to there, is emulated by most CPUs and slower.
    """
    import torch

    if torch.cuda.is_available():
        return Machine(ranks or min(2, torch.cuda.device_count()), ds_config or ROOT / "ds_configs" / "zero2.json")
    return Machine(ranks or 2, ds_config or ROOT / "ds_configs" / "zero2_fp32.json")


class RunFailedError(RuntimeError):
    """A run ended with an error."""


def start_run(
    run_dir: Path, machine: Machine, overrides: Sequence[str], quiet: bool = False, recipe: Path = DEMO_RECIPE
) -> float:
    """One training run of a recipe through the deepspeed launcher; returns its seconds. It goes on where the same run
    broke off.

    Raises RunFailedError with what it printed last if it fails.
    """
    command = [
        str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(machine.ranks),
        "--master_port", str(free_port()), "--log_level", "error",
        str(ROOT / "distill_engine" / "run.py"), "--ds_config", str(machine.ds_config),
        "--recipe", str(recipe), "--run-dir", str(run_dir),
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


def finished(folder: Path, machine: Machine, overrides: list[str], recipe: Path = DEMO_RECIPE) -> dict[str, Any]:
    """What became of one run, made now unless it is complete. Raises RunFailedError if it fails."""
    if not complete(folder, overrides, recipe):
        start_run(folder, machine, overrides, quiet=True, recipe=recipe)
    found = outcome(folder)
    sys.stderr.write(f"{folder.name}: {json.dumps(found)}\n")
    return found


def complete(folder: Path, overrides: list[str], recipe: Path = DEMO_RECIPE) -> bool:
    """Whether a run of this very recipe has ended there."""
    from distill_engine.recipe.identity import recipe_difference
    from distill_engine.recipe.load import load_recipe
    from distill_engine.recipe.rules import read_recipe
    from distill_engine.telemetry.jsonl import read_history

    if not (folder / "recipe.yaml").is_file() or not (folder / "metrics.jsonl").is_file():
        return False
    wanted = read_recipe(recipe, overrides)
    if recipe_difference(load_recipe(folder / "recipe.yaml"), wanted).mathematics:
        return False
    last = max((record.step for record in read_history(folder / "metrics.jsonl") if record.kind == "valid"), default=0)
    return wanted.stop.max_steps is not None and last >= wanted.stop.max_steps


def outcome(folder: Path) -> dict[str, Any]:
    """Best and last perplexity, its step, seconds of training, what a step takes when nothing disturbs it (20th
    percentile of the log: other work on the same cores only ever adds), and the last factors."""
    from distill_engine.telemetry.jsonl import read_history

    records = read_history(folder / "metrics.jsonl")
    valid = [(record.values["valid/ppl"], record.step) for record in records if record.kind == "valid"]
    best, best_step = min(valid)
    trained = [record for record in records if record.kind == "train"]
    prefix = "train/balance/"
    factors = {name.removeprefix(prefix): v for name, v in trained[-1].values.items() if name.startswith(prefix)}
    taken = sorted(record.values[_TIMED] for record in trained if _TIMED in record.values)
    return {
        "valid_ppl": best, "best_step": best_step, "last_ppl": valid[-1][0], "steps": valid[-1][1],
        "seconds": trained[-1].seconds, "seconds_per_step": taken[len(taken) // 5] if taken else None,
        "factors": factors,
    }  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
