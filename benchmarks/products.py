"""What oneDNN's float32 products are worth on this CPU, next to MKL's (distill_engine/arithmetic/products.py).

    python benchmarks/products.py [--preset parlai_cpu] [--precision fp32] [--pairs 8] [--placement replica]

First the rates of products alone, at the shapes of the preset's models. Then steps with and without oneDNN take turns
in one run built by the product (see step.py), so that what else the machine does slows both alike; seconds of the
processor are counted beside those of the clock. Prints one JSON line; benchmarks/README.md explains its fields.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from step import CONFIGS, PLACEMENTS, PRESETS, ds_configs, recipe_of, trainer_of
from step_presets import GIGA, Preset

from distill_engine.arithmetic import products
from distill_engine.engine import distributed
from distill_engine.telemetry.machine import machine_record
from distill_engine.train.loop import Trainer

ROUNDS = 5
WAYS = {"mkl": False, "onednn": True}


@contextmanager
def way(by_onednn: bool) -> Iterator[None]:
    """Larger products by one library, whatever processor this is."""
    found, products.quicker_by_onednn = products.quicker_by_onednn, lambda: by_onednn  # type: ignore[assignment]
    try:
        yield
    finally:
        products.quicker_by_onednn = found


def shapes(preset: Preset) -> dict[str, tuple[int, int, int]]:
    """Rows, summed over, columns of the products that a step of the preset consists of."""
    contexts, labels = preset.batch * preset.context_tokens, preset.batch * preset.label_tokens
    wide, narrow = preset.teacher, preset.student
    return {
        "teacher, context, attention": (contexts, wide.width, wide.width),
        "teacher, context, feed-forward": (contexts, wide.width, wide.ffn_width),
        "teacher, label, feed-forward": (labels, wide.ffn_width, wide.width),
        "teacher, logits": (labels, wide.width, preset.vocabulary),
        "student, context, attention": (contexts, narrow.width, narrow.width),
        "student, context, gradient of a feed-forward weight": (narrow.ffn_width, contexts, narrow.width),
        "student, logits, gradient of the embedding": (preset.vocabulary, labels, narrow.width),
    }


def rates(preset: Preset) -> dict[str, dict[str, float]]:
    """GFLOP per second of the processor (of all threads together), the best of some rounds."""
    found = {}
    for name, (rows, inner, columns) in shapes(preset).items():
        left, right = torch.randn(rows, inner), torch.randn(columns, inner).t()
        gflop = 2 * rows * inner * columns / GIGA
        seconds: dict[str, list[float]] = {one: [] for one in WAYS}
        for _ in range(ROUNDS):
            for one, by_onednn in WAYS.items():
                with way(by_onednn):
                    started = time.process_time()
                    products.product(left, right)
                    seconds[one].append(time.process_time() - started)
        found[name] = {one: gflop / min(spent) for one, spent in seconds.items()}
    return found


def step_seconds(trainer: Trainer, by_onednn: bool) -> tuple[float, float]:
    """Of the clock and of the processor."""
    with way(by_onednn):
        clock, processor = time.perf_counter(), time.process_time()
        trainer._step()
        return time.perf_counter() - clock, time.process_time() - processor


def report(asked: argparse.Namespace) -> dict[str, Any]:
    """Rates, and `pairs` pairs of steps."""
    preset = PRESETS[asked.preset]
    ranks = distributed.start()
    if preset.threads is not None:
        torch.set_num_threads(preset.threads)
    recipe = recipe_of(asked.preset, preset, asked.placement)
    taken: dict[str, list[tuple[float, float]]] = {one: [] for one in WAYS}
    with trainer_of(recipe, preset, ds_configs(recipe, asked.precision, ranks), ranks) as trainer:
        for by_onednn in WAYS.values():
            step_seconds(trainer, by_onednn)
        for number in range(asked.pairs):
            for one in list(WAYS)[:: 1 if number % 2 == 0 else -1]:
                taken[one].append(step_seconds(trainer, WAYS[one]))
    result: dict[str, Any] = {"chosen_here": products.quicker_by_onednn(), "rates": rates(preset)}
    for index, kind in enumerate(("seconds", "processor_seconds")):
        values = {one: [step[index] for step in steps] for one, steps in taken.items()}
        result[kind] = {one: statistics.median(each) for one, each in values.items()}
        result[f"ratio_of_{kind}"] = statistics.median(
            a / b for a, b in zip(values["mkl"], values["onednn"], strict=True)
        )
    return result | {
        "preset": asked.preset, "precision": asked.precision, "placement": asked.placement, "pairs": asked.pairs,
        "threads": torch.get_num_threads(), "machine": machine_record(),
    }  # fmt: skip


def main() -> int:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description="Steps with and without oneDNN's float32 products.")
    parser.add_argument("--preset", choices=PRESETS, default="parlai_cpu")
    parser.add_argument("--precision", choices=CONFIGS, default="fp32")
    parser.add_argument("--placement", choices=PLACEMENTS, default="replica")
    parser.add_argument("--pairs", type=int, default=8)
    asked = parser.parse_args()
    with redirect_stdout(sys.stderr):
        result = report(asked)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(result))
    distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
