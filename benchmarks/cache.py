"""What a training step costs with a teacher in memory, and with one whose outputs `distill cache` has kept.

    python benchmarks/cache.py --preset parlai_cpu

Makes the cache (all logits, in the precision of the run), builds both runs as the product does, and times a step of
each in turns, the first of a pair now this one and now that one, from the second epoch on. Prints one JSON line.
`bit_equal` is measured, not assumed: terms and gradients of the same student from either teacher, before the first
step, and all parameters of both students after the last one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import step  # first: it quiets libraries before anything imports torch
import torch
from step_device import wait

from distill_engine.assembly.caching import Settings, cache_maker_of
from distill_engine.assembly.student_module import student_module
from distill_engine.engine import distributed
from distill_engine.recipe.schema import Recipe
from distill_engine.student.projections import StudentModule
from distill_engine.telemetry.machine import machine_record
from distill_engine.train.loop import Trainer
from distill_engine.values import Batch


def report(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure a preset in this process."""
    preset = step.PRESETS[asked.preset]
    ranks = distributed.start()
    if preset.threads is not None:
        torch.set_num_threads(preset.threads)
    recipe = step.recipe_of(asked.preset, preset, "replica")
    recipe.losses.kernels.__dict__["prediction"] = "reference"  # what both can do, so that bits can be compared
    configs = step.ds_configs(recipe, "fp32", ranks)
    examples = preset.batch * asked.batches
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch, ExitStack() as runs:
        folder = Path(scratch)
        recipe.data.__dict__["cache_dir"] = str(folder / "tokens")
        step.write_teacher(preset, folder / "teacher")
        size = made_cache(recipe, preset, folder, examples, asked.k)
        other = recipe.model_copy(deep=True)
        other.teacher.__dict__.update(source="cache", cache=str(folder / "cache"))
        live, cached = (
            runs.enter_context(step.trainer_of(one, preset, configs, ranks, folder / "teacher", examples))
            for one in (recipe, other)
        )
        learner = student_module(step.prepared_of(recipe, preset, folder / "teacher", 1), live.objective, print)
        equal = same_outcome(learner, live, cached)
        for trainer in (live, cached):
            for _ in range(asked.batches):
                trainer._step()
        pairs = timed(live, cached, asked.pairs)
        shares = {name: one._watch.shares() for name, one in (("live", live), ("cached", cached))}
        equal = equal and all(
            torch.equal(one, two)
            for one, two in zip(live.student.module.parameters(), cached.student.module.parameters(), strict=True)
        )
    return {
        "preset": asked.preset,
        "k": asked.k or "all",
        "live_seconds_per_step": statistics.median(one for one, _ in pairs),
        "cached_seconds_per_step": statistics.median(two for _, two in pairs),
        "ratio": statistics.median(one / two for one, two in pairs),
        "bit_equal": equal,
        "pairs": len(pairs),
        "threads": torch.get_num_threads(),
        "cache_bytes": size,
        "cache_bytes_per_example": size / examples,
        "time_shares": {name: of_one for name, (of_one, _) in shares.items()},
        "machine": machine_record(),
    }


def made_cache(recipe: Recipe, preset: step.Preset, folder: Path, examples: int, k: int | None) -> int:
    """Writes folder/cache, in passes of the batches' own size; its bytes."""
    ready = step.prepared_of(recipe, preset, folder / "teacher", examples)
    maker = cache_maker_of(ready, folder / "cache", Settings(k, "fp32", "fp32", preset.batch))
    sys.stderr.write(f"{maker.require_fit()}\n")
    maker.write(lambda _: None)
    return maker.missing()[0]


def same_outcome(learner: StudentModule, live: Trainer, cached: Trainer) -> bool:
    """Whether one student learns the same to the bit from either teacher, on the first batches of the first epoch."""
    equal = True
    for _ in range(2):
        ((batch, *_), (other, *_)) = (list(trainer.batches.next_group()) for trainer in (live, cached))
        assert torch.equal(batch.labels, other.labels), "both runs see the same data"
        ours, theirs = (outcome(learner, trainer, batch) for trainer in (live, cached))
        equal = equal and all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))
    return equal


def outcome(learner: StudentModule, trainer: Trainer, batch: Batch) -> list[torch.Tensor]:
    """Total, terms and gradients."""
    objective = trainer.objective
    assert trainer.teacher is not None
    shown, _ = learner(batch, objective.student_request())
    (features,) = trainer.teacher.features([batch], objective.teacher_request())
    terms = objective.terms(shown, features, batch)
    total = objective.total(terms, objective.divisors([batch], lambda one: one, 1)[0])
    trained = [one for one in learner.parameters() if one.requires_grad]
    gradients = [one for one in torch.autograd.grad(total, trained, allow_unused=True) if one is not None]
    return [total.detach(), *(one.sum.detach() for one in terms.values()), *gradients]


def timed(live: Trainer, cached: Trainer, pairs: int) -> list[tuple[float, float]]:
    """Seconds of a step of each, in turns."""
    for trainer in (live, cached):
        trainer._watch.restart()
    found = []
    for number in range(pairs):
        order = (live, cached) if number % 2 == 0 else (cached, live)
        spent = {id(trainer): seconds_of(trainer) for trainer in order}
        found.append((spent[id(live)], spent[id(cached)]))
    return found


def seconds_of(trainer: Trainer) -> float:
    """Of one optimizer step."""
    wait(trainer.ranks.device)
    started = time.perf_counter()
    trainer._step()
    wait(trainer.ranks.device)
    return time.perf_counter() - started


def main() -> int:
    """Measure what the command line asks for and print one JSON line."""
    parser = argparse.ArgumentParser(description="Seconds per step with a live and with a cached teacher.")
    parser.add_argument("--preset", choices=step.PRESETS, default="parlai_cpu")
    parser.add_argument("--pairs", type=int, default=16, help="timed pairs of steps")
    parser.add_argument("--batches", type=int, default=8, help="batches of an epoch; the first epoch is not timed")
    parser.add_argument("--k", type=int, default=None, help="tokens kept of each position (default: all logits)")
    parser.add_argument("--folder", type=Path, default=None, help="where the cache is written meanwhile")
    asked = parser.parse_args()
    with redirect_stdout(sys.stderr):  # libraries print; standard output holds the one line
        result = report(asked)
        distributed.stop()
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
