"""How long one training step takes, next to the time that its arithmetic alone would take on this machine.

    python benchmarks/step.py --preset parlai_cpu
    deepspeed --num_accelerators 2 benchmarks/step.py --preset demo

Builds a run as the product does (same builder, engines, loop and files under ds_configs/), with random weights and
random tokens, and times the trainer's own steps. Prints one JSON line; benchmarks/README.md explains its fields.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from distill_engine.telemetry.quiet import quiet_libraries  # noqa: E402

quiet_libraries(int(os.environ.get("RANK", "0")))  # before anything imports torch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from step_device import MatmulRate, given_seconds, peak_memory_mib, planned_memory_mib, profiled, wait  # noqa: E402
from step_presets import PRESETS, WEIGHTS, Preset, arithmetic_gflop  # noqa: E402

from distill_engine.assembly.builder import Builder  # noqa: E402
from distill_engine.assembly.resizing import split_of  # noqa: E402
from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens  # noqa: E402
from distill_engine.data.tokens.tokenised import TokenisedDataset, TokenLimits  # noqa: E402
from distill_engine.engine import distributed  # noqa: E402
from distill_engine.engine.distributed import Ranks  # noqa: E402
from distill_engine.engine.ds_config import load_ds_config, precision_of, student_config, teacher_config  # noqa: E402
from distill_engine.families.lookup import family_named  # noqa: E402
from distill_engine.models.generation_settings import Decoder, settle_student  # noqa: E402
from distill_engine.models.own_settings import read_settings  # noqa: E402
from distill_engine.recipe.placement import placement_of  # noqa: E402
from distill_engine.recipe.schema import Recipe  # noqa: E402
from distill_engine.setup.prepare import Prepared  # noqa: E402
from distill_engine.student.build import build_student, fresh_config  # noqa: E402
from distill_engine.telemetry.machine import machine_record  # noqa: E402
from distill_engine.telemetry.sinks import SinkGroup  # noqa: E402
from distill_engine.train.loop import Trainer  # noqa: E402

PAD, START, END, FIRST_WORD = 0, 1, 2, 4
SPECIAL = SpecialTokens(PAD, END, START)
CONFIGS = {"fp16": "zero2.json", "bf16": "zero2_bf16.json", "fp32": "zero2_fp32.json"}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
PLACEMENTS = ("zero3", "node", "replica", "offload")
LONGEST_WARM_UP = 30  # steps that fp16's loss scale may take to come down


# ---- the run ---------------------------------------------------------------------------------------------------


def recipe_of(
    name: str, preset: Preset, placement: str = "zero3", kernels: str = "auto", overlap: bool = False
) -> Recipe:
    """The preset as a recipe: ParlAI's sample command in the preset's sizes (its `adam` is AMSGrad)."""
    student = asdict(preset.student)
    groups = dict.fromkeys(("attention", "hidden", "prediction"), kernels)
    return Recipe.model_validate(
        {
            "name": f"step-{name}",
            "teacher": {"placement": placement, "overlap": overlap},
            "student": {
                **student, "init": "random", "heads": preset.heads, "positions": preset.context_tokens,
                "dropout": 0.0, "attention_dropout": 0.0, "projections": "always", "train_position_tables": False,
            },
            "losses": {"definition": preset.definition, "weights": WEIGHTS, "kernels": groups},
            "data": {
                "tasks": [{"name": "demo"}],
                "context_tokens": preset.context_tokens,
                "label_tokens": preset.label_tokens,
            },
            "batch": {"per_rank": preset.batch},
            "optimizer": {"name": "adam", "amsgrad": True, "learning_rate": 1e-4, "clip_norm": 0.1},
        }
    )  # fmt: skip


def write_teacher(preset: Preset, folder: Path, device: torch.device | None = None) -> None:
    """A teacher with random weights, as a folder that the teacher's engine loads. A GPU makes them in no time, and
    then they are stored in 16 bits."""
    family = family_named("blenderbot")
    sizes = replace(preset.sizes(preset.teacher), dropout=0.0, attention_dropout=0.0)
    config = fresh_config(family, sizes, preset.vocabulary, SPECIAL)
    with device or torch.device("cpu"):
        model = build_student(family, config, None, seed=2)
    (model.half() if device is not None and device.type == "cuda" else model).save_pretrained(folder)


def random_dataset(preset: Preset, examples: int = 512) -> TokenisedDataset:
    """Examples of random words whose contexts and labels are exactly as long as the limits."""
    length = preset.context_tokens + preset.label_tokens
    tokens = np.random.default_rng(3).integers(FIRST_WORD, preset.vocabulary, examples * length, dtype=np.int32)
    begin = np.arange(examples, dtype=np.int64) * length
    context_end, label_end = begin + preset.context_tokens, begin + length
    return TokenisedDataset(
        tokens,
        np.stack([begin, context_end, context_end, label_end], axis=1),
        _layout(),
        TokenLimits(preset.context_tokens, preset.label_tokens),
    )


def _layout() -> SequenceLayout:
    return family_named("blenderbot").layout(SPECIAL)


def prepared_of(recipe: Recipe, preset: Preset, teacher: Path, examples: int = 512) -> Prepared:
    """The preset's data and models as what a start would prepare of the recipe; `teacher`: its folder."""
    return Prepared(
        recipe=recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"allow_noise": True})}),
        family=family_named("blenderbot"),
        teacher_folder=teacher,
        special=SPECIAL,
        teacher_config=json.loads((teacher / "config.json").read_text(encoding="utf-8")),
        tokenizer=None,
        layout=_layout(),
        dataset_labels=("random",),
        train_datasets=(random_dataset(preset, examples),),
        valid_datasets=(),
        valid_labels=(),
        generation=settle_student(
            read_settings(teacher),
            Decoder(family_named("blenderbot"), (START,), START, preset.context_tokens, preset.vocabulary, END),
            recipe.data.label_tokens,
        ),
    )


@contextmanager
def trainer_of(
    recipe: Recipe,
    preset: Preset,
    configs: tuple[dict[str, Any], dict[str, Any]],
    ranks: Ranks,
    teacher: Path | None = None,
    examples: int = 512,
) -> Iterator[Trainer]:
    """The trainer that the product would build for the recipe; configs: DeepSpeed's, of student and teacher.

    `teacher`: its folder, written where it is not there yet; None: one that goes with the run.
    """
    with tempfile.TemporaryDirectory() as mine:
        folder = Path(ranks.broadcast(mine))
        teacher = teacher or folder / "teacher"
        if ranks.rank == 0 and not (teacher / "config.json").is_file():
            write_teacher(preset, teacher, ranks.device)
            if ranks.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(ranks.device)
        ranks.barrier()
        ready = prepared_of(recipe, preset, teacher, examples)
        split = split_of(recipe, ranks.world_size)
        trainer = Builder(ready, folder, ranks, SinkGroup([], print), split).trainer(*configs)
        trainer.student.train()
        yield trainer
        trainer.batches.close()  # type: ignore[attr-defined]
        ranks.barrier()


def ds_configs(recipe: Recipe, precision: str, ranks: Ranks) -> tuple[dict[str, Any], dict[str, Any]]:
    """DeepSpeed's configurations of student and teacher, from the files under ds_configs/."""
    folder = ROOT / "ds_configs"
    student, _ = student_config(
        load_ds_config(folder / CONFIGS[precision]),
        batch_per_rank=recipe.batch.per_rank,
        accumulation_steps=recipe.batch.accumulation_steps,
        world_size=ranks.world_size,
        clip_norm=recipe.optimizer.clip_norm,
        fp16_supported=precision == "fp16" and ranks.supports(torch.float16),
        bf16_supported=True,
        optimizer=recipe.optimizer.model_dump(),
    )
    teacher = teacher_config(
        load_ds_config(folder / "teacher_zero3.json"),
        dtype=precision_of(student),
        batch_per_rank=recipe.batch.per_rank,
        world_size=ranks.world_size,
        placement=placement_of(recipe, ranks.world_size, {})[0],
    )
    return student, teacher


# ---- measuring -------------------------------------------------------------------------------------------------


def measure(trainer: Trainer, preset: Preset, rate: MatmulRate, steps: int) -> tuple[list[float], dict[str, float]]:
    """Seconds of each step, and the share of each phase in all of them. Raises SystemExit if one is skipped."""
    device, watch = trainer.ranks.device, trainer._watch
    for number in range(1, LONGEST_WARM_UP + 1):
        rate.sample()
        trainer._step()
        if number >= preset.warm_up and trainer._applied:
            break
    rate.samples.clear()
    skipped = trainer.progress.skipped_steps
    seconds = []
    spent: dict[str, float] = {}
    for _ in range(steps):
        rate.sample()
        trainer.ranks.barrier()  # type: ignore[attr-defined]
        wait(device)
        watch.restart()
        started = time.perf_counter()
        trainer._step()
        wait(device)
        seconds.append(time.perf_counter() - started)
        shares, wall = watch.shares()
        for phase, share in shares.items():
            spent[phase] = spent.get(phase, 0.0) + share * wall
    if trainer.progress.skipped_steps > skipped:
        raise SystemExit(f"{trainer.progress.skipped_steps - skipped} steps were skipped: a gradient was not finite.")
    total = sum(spent.values())
    return seconds, {phase: value / total for phase, value in spent.items()}


def report(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure a preset in this process group; the result, complete on rank 0."""
    name, preset = asked.preset, PRESETS[asked.preset]
    ranks = distributed.start()
    if preset.threads is not None:
        torch.set_num_threads(preset.threads)  # after the start, which shares the machine's cores out among ranks
    recipe = recipe_of(name, preset, asked.placement, asked.kernels, asked.overlap)
    configs = ds_configs(recipe, asked.precision, ranks)
    precision = precision_of(configs[0])
    rate = MatmulRate(DTYPES[precision], ranks.device, side=min(2048, 4 * preset.teacher.width))
    with trainer_of(recipe, preset, configs, ranks, asked.teacher) as trainer:
        seconds, shares = measure(trainer, preset, rate, asked.steps or preset.steps)
        peak = peak_memory_mib(ranks.device)
        seen = profiled(trainer._step, ranks.device)
    ordered = sorted(seconds)
    median, last = statistics.median(ordered), len(ordered) - 1
    gflop, gflops = arithmetic_gflop(preset), statistics.median(rate.samples)
    tokens = preset.batch * (preset.context_tokens + preset.label_tokens) * ranks.world_size
    return {
        "preset": name,
        "precision": precision,
        "definition": preset.definition,
        "placement": asked.placement,
        "kernels": asked.kernels,
        "overlap": asked.overlap,
        "ranks": ranks.world_size,
        "threads": torch.get_num_threads(),
        "steps": len(seconds),
        "seconds_per_step": median,
        "p20": ordered[round(0.2 * last)],
        "p80": ordered[round(0.8 * last)],
        "tokens_per_second": tokens / median,
        "peak_memory_mib": peak,
        "planned_memory_mib": planned_memory_mib(recipe, preset, configs, ranks.world_size, ranks.local_size),
        **seen,
        "arithmetic_gflop": gflop,
        "matmul_gflops": gflops,
        "floor_seconds": gflop / gflops,
        "ratio_to_floor": median * gflops / gflop,
        "time_shares": shares,
        "machine": machine_record(),
    }


def main() -> int:
    """Measure what the command line asks for and print one JSON line."""
    parser = argparse.ArgumentParser(description="Seconds per training step, and the floor of this machine.")
    parser.add_argument("--preset", choices=PRESETS, default="parlai_cpu")
    parser.add_argument("--precision", choices=CONFIGS, default="fp32")
    parser.add_argument("--placement", choices=PLACEMENTS, default="zero3", help="where the teacher lives")
    parser.add_argument("--kernels", choices=("auto", "fused", "reference"), default="auto", help="of the losses")
    parser.add_argument("--overlap", action="store_true", help="teacher.overlap, with --placement replica on a GPU")
    parser.add_argument("--steps", type=int, default=None, help="timed steps (default: the preset's)")
    parser.add_argument("--teacher", type=Path, default=None, help="folder of the random teacher, to use it again")
    parser.add_argument("--against", type=Path, default=None, help="JSON with the seconds_per_step to compare with")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # launchers add it
    asked = parser.parse_args()
    theirs = None if asked.against is None else given_seconds(asked.against)
    with redirect_stdout(sys.stderr):  # libraries print; standard output holds the one line
        result = report(asked)
    if theirs is not None:
        ratio = theirs / result["seconds_per_step"]
        result |= {"against_seconds": theirs, "times_as_fast": ratio}
        sys.stderr.write(f"{ratio:.3f} times as fast as the {theirs:g} s of {asked.against}\n")
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(result))
    distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
