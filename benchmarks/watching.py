"""What watching costs: a step that measures every term's gradient norm, next to one that does not.

    python benchmarks/watching.py [--preset demo] [--pairs 15]

Both kinds of step take turns in one run built by the product (see step.py), so that what else the machine does slows
both alike. Prints one JSON line: `ratio` is the median of the pairs' ratios, `share_at_default` what the measured step
adds to the time of all steps at the recipe's default interval.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import redirect_stdout
from typing import Any

from step import PRESETS, Preset, ds_configs, recipe_of, trainer_of

from distill_engine.engine import distributed
from distill_engine.telemetry.config import LoggingSection
from distill_engine.telemetry.machine import machine_record
from distill_engine.train.balancing import LossTerms
from distill_engine.train.loop import Trainer
from distill_engine.train.term_gradients import TermGradients


class Switched(TermGradients):
    """Measures at every attempt while it is on, at none while it is off."""

    on = False

    def due(self, attempt: int) -> bool:
        """Once for each attempt, if on."""
        return self.on and super().due(attempt)


def report(name: str, preset: Preset, pairs: int) -> dict[str, Any]:
    """Time `pairs` pairs of steps."""
    ranks = distributed.start()
    recipe = recipe_of(name, preset)
    with trainer_of(recipe, preset, ds_configs(recipe, "fp32", ranks), ranks) as trainer:
        scale = lambda: trainer.student.loss_scale  # noqa: E731 - it changes from step to step
        module: Any = trainer.student.module  # type: ignore[attr-defined]
        gradients = Switched(trainer.objective, module, 1, scale, ranks.device)
        (terms,) = (hook for hook in trainer.hooks.each if isinstance(hook, LossTerms))
        terms.gradients = gradients
        for switch in (False, True) * preset.warm_up:
            seconds_of_step(trainer, gradients, switch)
        plain, measured = [], []
        for number in range(pairs):
            order = (False, True) if number % 2 == 0 else (True, False)
            for switch in order:
                (measured if switch else plain).append(seconds_of_step(trainer, gradients, switch))
    ratios = [b / a for a, b in zip(plain, measured, strict=True)]
    interval = LoggingSection().gradient_norm_every_steps
    ratio = statistics.median(ratios)
    return {
        "preset": name,
        "terms": len(trainer.objective.term_weights),
        "ranks": ranks.world_size,
        "pairs": pairs,
        "seconds_per_step": statistics.median(plain),
        "seconds_per_measured_step": statistics.median(measured),
        "ratio": ratio,
        "ratio_p20": sorted(ratios)[round(0.2 * (pairs - 1))],
        "ratio_p80": sorted(ratios)[round(0.8 * (pairs - 1))],
        "default_interval": interval,
        "share_at_default": (ratio - 1) / interval,
        "machine": machine_record(),
    }


def seconds_of_step(trainer: Trainer, gradients: Switched, on: bool) -> float:
    """One step, with the norms read as logging does, which waits for the device."""
    gradients.on = on
    started = time.perf_counter()
    trainer._step()
    trainer.hooks.train_values(1.0)
    return time.perf_counter() - started


def main() -> int:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--pairs", type=int, default=15)
    asked = parser.parse_args()
    with redirect_stdout(sys.stderr):  # libraries print; standard output holds the one line
        result = report(asked.preset, PRESETS[asked.preset], asked.pairs)
    print(json.dumps(result))
    distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
