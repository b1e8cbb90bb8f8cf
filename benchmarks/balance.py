"""Can the demo do without hand-tuned loss weights? Four runs of its recipe with one seed and one budget.

    python benchmarks/balance.py [--set a.b=value] [--ranks N] [--run-dir DIR]

hand_tuned has the weights of recipes/demo.yaml; the others begin with every weight at 1, as one would with a new
teacher and new data, and balance them by `none`, `initial_scale` or `gradient_norm`. Prints one JSON object and writes
it to benchmarks/results/balance.json, with a table in balance.md. With --run-dir the runs are kept, and one that is
complete there is not repeated: a benchmark that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from runs import DEMO_RECIPE, ROOT, Machine, start_run, this_machine

from distill_engine.recipe.identity import recipe_difference
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.rules import read_recipe
from distill_engine.recipe.schema import LossWeights
from distill_engine.telemetry.jsonl import read_history
from distill_engine.telemetry.machine import machine_record

ALL_ONES = tuple(f"losses.weights.{name}=1" for name in LossWeights.model_fields)
ARMS: dict[str, tuple[str, ...]] = {
    "hand_tuned": (),
    "ones_none": ALL_ONES,
    "ones_initial_scale": (*ALL_ONES, "losses.balance=initial_scale"),
    "ones_gradient_norm": (*ALL_ONES, "losses.balance=gradient_norm"),
}


def main() -> int:
    """Returns 0 when a balanced run reaches the hand-tuned perplexity, 1 when none does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value",
                        help="change one value of the recipe in all runs")  # fmt: skip
    parser.add_argument("--ranks", type=int, default=None, help="ranks of a run (default: as the demo)")
    parser.add_argument("--run-dir", type=Path, default=None, help="keep the runs here, and go on with them")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "balance.json")
    given = parser.parse_args()
    machine = this_machine() if given.ranks is None else replace(this_machine(), ranks=given.ranks)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.run_dir or Path(scratch)
        rows = {name: row(folder / name, machine, [*given.overrides, *arm]) for name, arm in ARMS.items()}
    result = summarise(rows) | {"overrides": given.overrides, "ranks": machine.ranks, "machine": machine_record()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    given.out.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["reached_by"] else 1


def row(folder: Path, machine: Machine, overrides: list[str]) -> dict[str, Any]:
    """What became of one run, made now unless it is complete. Raises RunFailedError if it fails."""
    if not complete(folder, overrides):
        start_run(folder, machine, overrides, quiet=True)
    found = outcome(folder)
    sys.stderr.write(f"{folder.name}: {json.dumps(found)}\n")
    return found


def complete(folder: Path, overrides: list[str]) -> bool:
    """Whether a run of this very recipe has ended there."""
    if not (folder / "recipe.yaml").is_file() or not (folder / "metrics.jsonl").is_file():
        return False
    wanted = read_recipe(DEMO_RECIPE, overrides)
    if recipe_difference(load_recipe(folder / "recipe.yaml"), wanted).mathematics:
        return False
    last = max((record.step for record in read_history(folder / "metrics.jsonl") if record.kind == "valid"), default=0)
    return wanted.stop.max_steps is not None and last >= wanted.stop.max_steps


def outcome(folder: Path) -> dict[str, Any]:
    """Best and last perplexity, its step, seconds of training, and the last factors."""
    records = read_history(folder / "metrics.jsonl")
    valid = [(record.values["valid/ppl"], record.step) for record in records if record.kind == "valid"]
    best, best_step = min(valid)
    last = [record for record in records if record.kind == "train"][-1]
    prefix = "train/balance/"
    factors = {name.removeprefix(prefix): v for name, v in last.values.items() if name.startswith(prefix)}
    return {
        "valid_ppl": best, "best_step": best_step, "last_ppl": valid[-1][0], "steps": valid[-1][1],
        "seconds": last.seconds, "factors": factors,
    }  # fmt: skip


def summarise(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The rows, and which of the balanced runs are at least as good as the hand-tuned one."""
    hand = rows["hand_tuned"]["valid_ppl"]
    balanced = [name for name in rows if name not in ("hand_tuned", "ones_none")]
    return {"reached_by": [name for name in balanced if rows[name]["valid_ppl"] <= hand], "runs": rows}


def markdown(result: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    lines = ["| weights | `losses.balance` | valid ppl | at step | of | seconds |", "|---|---|---|---|---|---|"]
    for name, found in result["runs"].items():
        weights, _, method = name.partition("_") if name != "hand_tuned" else ("of the recipe", "", "none")
        lines.append(
            f"| {'all 1' if weights == 'ones' else weights} | `{method}` | {found['valid_ppl']:.4f} | "
            f"{found['best_step']} | {found['steps']} | {found['seconds']:.0f} |"
        )
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    changed = f" with {', '.join(f'`{one}`' for one in result['overrides'])}" if result["overrides"] else ""
    device = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['cpu_cores']} cores"
    lines += ["", f"The demo's recipe{changed}, {result['ranks']} rank(s); {device}; {versions}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
