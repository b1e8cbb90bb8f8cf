"""Can the demo do without hand-tuned loss weights? Runs of its recipe with the same seeds and one budget.

    python benchmarks/balance.py [--seeds N] [--arms NAME,...] [--set a.b=value] [--ranks N] [--run-dir DIR]

hand_tuned has the weights of recipes/demo.yaml; the others begin with every weight at 1, as one would with a new
teacher and new data, and balance them by each of the values of `losses.balance`. Prints one JSON object and writes it
to benchmarks/results/balance.json, with a table in balance.md, unless --arms leaves hand_tuned out. With --run-dir the
runs are kept, and one that is complete there is not repeated: a benchmark that was broken off goes on, and two that
make different --arms may share the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from runs import DEMO_RECIPE, ROOT, finished, this_machine

from distill_engine.losses.config import LossesSection
from distill_engine.recipe.load import load_recipe
from distill_engine.telemetry.machine import machine_record

HAND_TUNED = load_recipe(DEMO_RECIPE).losses.weights.root
ALL_ONES = tuple(f"losses.weights.{name}=1" for name, weight in HAND_TUNED.items() if weight)
METHODS = get_args(LossesSection.model_fields["balance"].annotation)
ARMS: dict[str, tuple[str, ...]] = {"hand_tuned": ()} | {
    f"ones_{method}": (*ALL_ONES, f"losses.balance={method}") for method in METHODS
}


def main() -> int:
    """Returns 0 when a balanced arm's mean perplexity reaches the hand-tuned one's, 1 when none does; without the
    arm hand_tuned 0 when all runs are made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value",
                        help="change one value of the recipe in all runs")  # fmt: skip
    parser.add_argument("--seeds", type=_seeds, default=1, metavar="N", help="runs of each arm, with seeds 1 to N")
    parser.add_argument("--arms", type=_arms, default=tuple(ARMS), help=f"some of {','.join(ARMS)}; default: all")
    parser.add_argument("--ranks", type=int, default=None, help="ranks of a run (default: as the demo)")
    parser.add_argument("--run-dir", type=Path, default=None, help="keep the runs here, and go on with them")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "balance.json")
    given = parser.parse_args()
    if "hand_tuned" not in given.arms and given.run_dir is None:
        parser.error("--arms without hand_tuned makes no table; --run-dir must say where the runs are kept for one")
    if any(override.partition("=")[0].strip() == "seed" for override in given.overrides):
        parser.error("--set seed=... has no effect here: runs have seeds 1 to --seeds")
    machine = this_machine(given.ranks)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.run_dir or Path(scratch)
        rows = {
            name: [
                finished(folder / f"{name}_{seed}", machine, [*given.overrides, f"seed={seed}", *ARMS[name]])
                for seed in range(1, given.seeds + 1)
            ]
            for name in given.arms
        }
    if "hand_tuned" not in rows:
        return 0  # nothing to compare with yet: the runs are kept
    result = summarise(rows) | {"overrides": given.overrides, "ranks": machine.ranks, "machine": machine_record()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    given.out.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["reached_by"] else 1


def _seeds(given: str) -> int:
    if not given.isdigit() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"{given!r} is no number of runs; give 1 or more")
    return int(given)


def _arms(given: str) -> tuple[str, ...]:
    names = tuple(given.split(","))
    if unknown := sorted(set(names) - set(ARMS)):
        raise argparse.ArgumentTypeError(f"no arm {', '.join(unknown)}; there are: {', '.join(ARMS)}")
    return names


def summarise(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The rows by arm and seed, each arm's mean perplexity, and which balanced ones are at least as good as the
    hand-tuned one."""
    means = {name: sum(found["valid_ppl"] for found in runs) / len(runs) for name, runs in rows.items()}
    balanced = [name for name in rows if name not in ("hand_tuned", "ones_none")]
    reached = [name for name in balanced if means[name] <= means["hand_tuned"]]
    return {"reached_by": reached, "mean_valid_ppl": means, "runs": rows}


def markdown(result: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    lines = ["| weights | `losses.balance` | valid ppl, mean | of each seed | steps |", "|---|---|---|---|---|"]
    for name, runs in result["runs"].items():
        weights, _, method = name.partition("_") if name != "hand_tuned" else ("of the recipe", "", "none")
        of_each = ", ".join(f"{found['valid_ppl']:.4f}" for found in runs)
        lines.append(
            f"| {'all 1' if weights == 'ones' else weights} | `{method}` | {result['mean_valid_ppl'][name]:.4f} | "
            f"{of_each} | {runs[0]['steps']} |"
        )
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    changed = f" with {', '.join(f'`{one}`' for one in result['overrides'])}" if result["overrides"] else ""
    device = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['cpu_cores']} cores"
    lines += ["", f"The demo's recipe{changed}, {result['ranks']} rank(s); {device}; {versions}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
