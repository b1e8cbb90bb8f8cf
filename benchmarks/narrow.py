"""What a narrower student begins with: random numbers, or what matters most in its teacher.

    python benchmarks/narrow.py [--seeds 3] [--ranks 1] [--set a.b=value] [--run-dir DIR] [--no-run]

The demo's student at half the width and half the neurons, with `student.init: random` and `teacher_width`, and with all
of the demo's losses; both are trained for as many steps from the same examples. The gap is that of log perplexity
between the random student and the teacher; what is told is the share of it that teacher_width closes (aim: at least a
half). Runs that are complete in --run-dir are not repeated.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runs import DEMO_RECIPE, complete, finished, options_over_seeds, outcome, this_machine

from distill_engine.telemetry.jsonl import read_history
from distill_engine.telemetry.machine import machine_record

SIZES = ("student.width=48", "student.ffn_width=128")
ARMS = {"random": ("student.init=random",), "teacher_width": ("student.init=teacher_width",)}
AIM = 0.5


def main() -> int:
    """Make what is missing, write, and return 0; 1 if no seed is complete yet."""
    parser = options_over_seeds(__doc__, "narrow", ranks=1)
    given = parser.parse_args()
    machine = this_machine(given.ranks, given.ds_config)
    found: dict[int, dict[str, Any]] = {}
    for seed in range(1, given.seeds + 1):
        for name, own in ARMS.items():
            folder, overrides = given.run_dir / f"{name}-{seed}", [*SIZES, *own, *given.overrides, f"seed={seed}"]
            if not given.no_run:
                finished(folder, machine, overrides)
            if complete(folder, overrides):
                found.setdefault(seed, {})[name] = outcome(folder) | {"teacher_ppl": teacher_ppl(folder)}
    whole = {seed: arms for seed, arms in found.items() if arms.keys() == ARMS.keys()}
    if not whole:
        return 1
    facts = {"recipe": DEMO_RECIPE.name, "overrides": [*SIZES, *given.overrides], "ranks": machine.ranks}
    result = facts | summarise(whole) | {"machine": machine_record()}
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(markdown(result))
    return 0


def teacher_ppl(folder: Path) -> float:
    """The teacher's perplexity on the same validation examples, which a run measures beside its student."""
    records = [one.values for one in read_history(folder / "metrics.jsonl") if one.kind == "valid"]
    return float(records[-1]["valid/teacher_ppl"])


def share_closed(random: float, narrow: float, teacher: float) -> float:
    """Of the gap in log perplexity between a random student and the teacher."""
    return (math.log(random) - math.log(narrow)) / (math.log(random) - math.log(teacher))


def summarise(runs: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Of each seed, and over them: mean and spread (largest minus smallest)."""
    seeds = {
        str(seed): {
            "random_ppl": arms["random"]["valid_ppl"],
            "teacher_width_ppl": arms["teacher_width"]["valid_ppl"],
            "teacher_ppl": arms["random"]["teacher_ppl"],
            "share_of_gap_closed": share_closed(
                arms["random"]["valid_ppl"], arms["teacher_width"]["valid_ppl"], arms["random"]["teacher_ppl"]
            ),
        }
        for seed, arms in runs.items()
    }
    mean, spread = ({key: how([one[key] for one in seeds.values()]) for key in next(iter(seeds.values()))}
                    for how in (statistics.mean, _spread))  # fmt: skip
    share = mean["share_of_gap_closed"]
    steps = {arms[name]["steps"] for arms in runs.values() for name in arms}
    return {"steps": steps.pop(), "aim": AIM, "aim_is_met": share >= AIM, "mean": mean, "spread": spread,
            "seeds": seeds, "runs": {str(seed): dict(arms) for seed, arms in runs.items()}}  # fmt: skip


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def markdown(result: Mapping[str, Any]) -> str:
    """The table."""
    lines = [
        "| seed | random: valid ppl | teacher_width | teacher | of the gap in log ppl |",
        "|---|---:|---:|---:|---:|",
    ]
    rows = {**result["seeds"], "mean": result["mean"], "spread": result["spread"]}
    for name, one in rows.items():
        ppl = " | ".join(f"{one[f'{key}_ppl']:.4f}" for key in ("random", "teacher_width", "teacher"))
        lines.append(f"| {name} | {ppl} | {one['share_of_gap_closed']:.1%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
