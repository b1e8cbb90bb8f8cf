"""What the demo's student loses when its teacher's 64 most probable tokens are all that a cache keeps.

    python benchmarks/cache_demo.py [--k N] [--seeds N] [--set a.b=value] [--run-dir DIR]

Makes a cache of the demo's recipe, trains with the live and with the cached teacher, and compares validation perplexity
with how far seeds lie apart; on validation examples also the KL divergence of the live run's student, from all logits
and from what the cache keeps of them. Prints one JSON line. Runs that are complete in --run-dir are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from runs import DEMO_RECIPE, ROOT, finished, this_machine

from distill_engine.telemetry.machine import machine_record

EXAMPLES = 256  # of validation, for the divergence
COMMON = ("batch.per_rank=64", "validation.samples=0")


def main() -> int:
    """Returns 0 when no more is lost than the live runs' own seeds differ by, 1 otherwise (0 with one seed)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=64, help="tokens kept of each position")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each, with seeds 1 to N")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--run-dir", type=Path, default=None, help="keep cache and runs here, and go on with them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measured(given.run_dir or Path(scratch), given.k, given.seeds, [*COMMON, *given.overrides])
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if given.seeds == 1 or result["mean_lost"] <= result["live_spread"] else 1


def measured(folder: Path, k: int, seeds: int, overrides: list[str]) -> dict[str, Any]:
    """Everything that is printed."""
    cache = folder / f"cache_{k}"
    command = [
        sys.executable,
        "-m",
        "distill_engine.cli",
        "cache",
        str(DEMO_RECIPE),
        "--out",
        str(cache),
        "--k",
        str(k),
    ]
    subprocess.run([*command, *(word for one in overrides for word in ("--set", one))], check=True, cwd=ROOT)
    arms = {"live": [], "cached": ["teacher.source=cache", f"teacher.cache={cache.absolute()}"]}
    machine = this_machine(1)
    ppl = {
        name: [
            finished(folder / f"{name}_{seed}", machine, [*overrides, *own, f"seed={seed}"])["valid_ppl"]
            for seed in range(1, seeds + 1)
        ]
        for name, own in arms.items()
    }
    exact, kept = divergences(folder / "live_1" / "best", k, overrides)
    means = {name: sum(of_arm) / len(of_arm) for name, of_arm in ppl.items()}
    return {
        "k": k,
        "kl_exact": exact,
        "kl_kept": kept,
        "kl_difference": abs(exact - kept),
        "valid_ppl": ppl,
        "mean_lost": means["cached"] - means["live"],
        "live_spread": max(ppl["live"]) - min(ppl["live"]),
        "overrides": overrides,
        "machine": machine_record(),
    }


def divergences(student: Path, k: int, overrides: list[str]) -> tuple[float, float]:
    """KL from the teacher to the student, mean over label tokens of validation: of all logits, and of what is kept."""
    import numpy as np
    import torch

    from distill_engine.assembly.frozen_teacher import Frozen
    from distill_engine.data.order.collate import Picks
    from distill_engine.data.order.loader import picked_batch
    from distill_engine.losses.top_tokens import beside_student
    from distill_engine.recipe.rules import read_recipe
    from distill_engine.setup.prepare import prepare
    from distill_engine.teachers.columns import Form, packed, unpacked
    from distill_engine.values import FeatureRequest

    ready = prepare(read_recipe(DEMO_RECIPE, overrides), DEMO_RECIPE)
    assert ready.teacher_folder is not None and ready.teacher_shape is not None
    cpu, logits = torch.device("cpu"), FeatureRequest()
    teacher, learnt = Frozen(ready.teacher_folder, "fp32", cpu), Frozen(student, "fp32", cpu)
    form = Form(k, "fp32", ready.teacher_shape.vocab, ready.family.masked_id(ready.layout.start_id))
    sums, tokens = torch.zeros(2, dtype=torch.float64), 0
    for numbers in np.split(np.arange(EXAMPLES), 8):
        batch = picked_batch(ready.valid_datasets, Picks(np.zeros_like(numbers), numbers), ready.layout, 1)
        whole = teacher.features(batch, logits)
        rows = {name: one for name, (_, _, one) in packed(whole, form).items()}
        ours = learnt.features(batch, logits).logits
        assert ours is not None
        of_student = ours.double().log_softmax(dim=-1)
        for place, shown in enumerate((whole, unpacked(rows, form, {}, logits, {}))):
            assert shown.logits is not None
            seen = shown.logits if shown.kept is None else beside_student(shown.logits, shown.kept, ours)
            of_teacher = seen.double().log_softmax(dim=-1)
            each = (of_teacher.exp() * (of_teacher - of_student)).nan_to_num(0.0).sum(dim=-1)
            sums[place] += each[batch.label_mask].sum()
        tokens += int(batch.label_mask.sum())
    exact, kept = (sums / tokens).tolist()
    return exact, kept


if __name__ == "__main__":
    sys.exit(main())
