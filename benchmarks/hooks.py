"""What DeepSpeed's ZeRO-3 hooks cost a teacher pass on the host: Python around every layer, whatever it computes.

    python benchmarks/hooks.py [--passes 30] [--json FILE]

Two teachers of tiny layers (so that arithmetic is small beside the hooks), a deep and a shallow one, on one rank (so
that nothing travels), each as `teacher.placement: zero3` and as `replica`. What a layer adds under ZeRO-3, less what it
adds as a plain copy, is the price of its hooks; `launcher/traffic.py` holds it as HOOK_SECONDS. Counted is the
processor's time of one thread, which other programs disturb little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from distill_engine.telemetry.quiet import quiet_libraries  # noqa: E402

quiet_libraries(0)  # before anything imports torch

import torch  # noqa: E402
from runs import free_port  # noqa: E402
from step import FIRST_WORD, START, write_teacher  # noqa: E402
from step_presets import PRESETS, Preset  # noqa: E402

from distill_engine.engine import distributed  # noqa: E402
from distill_engine.engine.config import Placement  # noqa: E402
from distill_engine.engine.distributed import Ranks  # noqa: E402
from distill_engine.engine.ds_config import load_ds_config, teacher_config  # noqa: E402
from distill_engine.engine.teacher import TeacherEngine  # noqa: E402
from distill_engine.models.adapter import adapt  # noqa: E402
from distill_engine.telemetry.machine import machine_record  # noqa: E402
from distill_engine.values import Batch, FeatureRequest, Tokens  # noqa: E402

SHALLOW, DEEP = 4, 28  # decoder layers
PLACEMENTS: tuple[Placement, ...] = ("zero3", "replica")
TINY = PRESETS["tiny"]


def measured(passes: int) -> dict[str, float]:
    """Seconds of a pass of each teacher, and of one layer's hooks."""
    ranks = distributed.start()
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for layers in (SHALLOW, DEEP):
            preset = replace(TINY, teacher=replace(TINY.teacher, decoder_layers=layers))
            write_teacher(preset, Path(folder) / str(layers))
            for placement in PLACEMENTS:
                name = f"{placement}_{layers}_layers"
                seconds[name] = _seconds(preset, Path(folder) / str(layers), placement, ranks, passes)
    distributed.stop()
    layer = {one: (seconds[f"{one}_{DEEP}_layers"] - seconds[f"{one}_{SHALLOW}_layers"]) for one in PLACEMENTS}
    seconds["hooks_of_a_layer"] = (layer["zero3"] - layer["replica"]) / (DEEP - SHALLOW)
    return seconds


def _seconds(preset: Preset, folder: Path, placement: Placement, ranks: Ranks, passes: int) -> float:
    base = load_ds_config(ROOT / "ds_configs" / "teacher_zero3.json")
    base["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # all weights are fetched, as in a big model
    config = teacher_config(base, dtype="fp32", world_size=ranks.world_size, placement=placement)
    teacher = TeacherEngine(folder, config, torch.float32, ranks, adapt, placement)
    words = torch.randint(FIRST_WORD, preset.vocabulary, (1, 8), generator=torch.Generator().manual_seed(1))
    read = torch.cat([torch.full((1, 1), START), words[:, :-1]], dim=1)
    batch = Batch.of(Tokens(words, torch.ones_like(words)), read, words)
    times = []
    for number in range(passes + 5):  # in the first ones DeepSpeed learns the order of the layers
        started = time.process_time()
        teacher.features(batch, FeatureRequest())
        times += [time.process_time() - started] if number >= 5 else []
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--passes", type=int, default=30, help="timed passes of each teacher")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    given = parser.parse_args()
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    found = {"seconds": measured(given.passes), "machine": machine_record()}
    text = json.dumps(found, indent=2)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
