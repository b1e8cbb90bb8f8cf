"""Is the distilled student really better? Both runs of the demo for several seeds, and the spread between seeds.

    python benchmarks/gain.py --seeds 3

Prints one JSON object and writes it to benchmarks/results/gain.json. `wins` is true when every distilled student
beats its twin without the teacher and the mean difference is larger than the spread (largest minus smallest) of
either kind over the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo import distil_and_compare, gap_closed
from runs import ROOT

from distill_engine.telemetry.machine import machine_record
from distill_engine.telemetry.quiet import quiet_libraries


def main() -> int:
    """Returns 0 when distillation wins, 1 when it does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value",
                        help="change one value of the recipe in all runs")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gain.json")
    given = parser.parse_args()
    quiet_libraries(0)  # before anything imports transformers
    per_seed = []
    for seed in range(1, given.seeds + 1):
        with tempfile.TemporaryDirectory() as folder:
            overrides = [*given.overrides, f"seed={seed}"]
            rows = distil_and_compare(Path(folder) / "run", overrides, quiet=True)
        per_seed.append({"seed": seed, **rows, "gap_closed": gap_closed(rows)})
        sys.stderr.write(f"seed {seed}: {json.dumps(per_seed[-1])}\n")
    result = summarise(per_seed) | {"overrides": given.overrides, "machine": machine_record()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["wins"] else 1


def summarise(per_seed: list[dict[str, Any]]) -> dict[str, Any]:
    """Means, spreads and the verdict over all seeds."""
    ppl = {
        name: [row[name]["valid_ppl"] for row in per_seed] for name in ("teacher", "distilled", "without_teacher")
    }
    spread = {name: max(values) - min(values) for name, values in ppl.items()}
    mean = {name: statistics.mean(values) for name, values in ppl.items()}
    difference = mean["without_teacher"] - mean["distilled"]
    pairs = zip(ppl["without_teacher"], ppl["distilled"], strict=True)
    return {
        "seeds": len(per_seed),
        "valid_ppl_mean": mean,
        "valid_ppl_spread": spread,
        "difference": difference,
        "gap_closed_mean": statistics.mean(row["gap_closed"] for row in per_seed),
        "wins": all(alone > distilled for alone, distilled in pairs)
        and difference > max(spread["distilled"], spread["without_teacher"])
        and math.isfinite(difference),
        "per_seed": per_seed,
    }


if __name__ == "__main__":
    sys.exit(main())
