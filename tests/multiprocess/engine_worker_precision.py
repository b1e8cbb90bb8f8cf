"""Losses that are not numbers, in every precision, and the whole life of fp16 with its dynamic loss scale."""

from collections.abc import Iterator
from contextlib import contextmanager

import tiny_models as tiny
import torch
from deepspeed.accelerator import get_accelerator
from engine_worker_bench import ADAM, DTYPES, Bench, PlainTeacher, digest, rank_groups
from engine_worker_trainer import NAN, OVERFLOW, make_trainer, schedule, story

from distill_engine.checkpoint.trust import scan_pickles
from distill_engine.engine.student import CHECKPOINT_CLASSES, StudentEngineError

FP16 = {"initial_scale_power": 8, "hysteresis": 2, "loss_scale_window": 2}
# name -> JSON, changed blocks, precision, factor of the bad loss
SPOILED = {
    "fp32": ("zero2_fp32.json", {}, "fp32", NAN),
    "fp32_offloaded": ("zero2_fp32.json", {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "fp32", NAN),
    "bf16": ("zero2_bf16.json", {}, "bf16", NAN),
    "fp16": ("zero2.json", {"fp16": FP16}, "fp16", OVERFLOW),
    "fp16_offloaded": ("zero2_offload.json", {"fp16": FP16}, "fp16", OVERFLOW),
}


@contextmanager
def fp16_on_cpu() -> Iterator[None]:
    """Let the CPU accelerator say that it can do fp16; it can, slowly."""
    kind = type(get_accelerator())
    kept = kind.is_fp16_supported
    kind.is_fp16_supported = lambda self: True
    try:
        yield
    finally:
        kind.is_fp16_supported = kept


def poisoned(bench: Bench) -> dict:
    """Three steps, the second with one bad loss on the last rank; and the first and third step alone."""
    with fp16_on_cpu():
        return {
            name: {"with": _steps(bench, name, spoiled=True), "without": _steps(bench, name, spoiled=False)}
            for name in SPOILED
        }


def _steps(bench: Bench, name: str, spoiled: bool) -> dict:
    file, blocks, precision, factor = SPOILED[name]
    goal = tiny.objective()
    module = tiny.student(bench.teachers / "blenderbot", goal)
    student = bench.student(module, bench.student_ds(file, accumulation=2, **blocks), ADAM)
    teacher = PlainTeacher(bench.teachers / "blenderbot", DTYPES[precision])  # the students are the point here
    groups = rank_groups(51, bench.ranks, 2, 3)
    last = bench.ranks.rank == bench.ranks.world_size - 1
    outcomes, digests = [], [digest(module)]
    for number in (0, 1, 2) if spoiled else (0, 2):
        spoil = factor if number == 1 and last else 1.0
        outcomes.append(bench.take_step(student, teacher, goal, groups[number], 1e-3, spoil)[1])
        digests.append(digest(module))
    return {"outcomes": outcomes, "digests": digests, "dtype": str(student.dtype), "scale": student.loss_scale}


def fp16_story(bench: Bench) -> dict:
    """Six steps of the training loop with overflows at attempts 2 and 3; at once, and in two starts."""
    faults = {2: OVERFLOW, 3: OVERFLOW}
    with fp16_on_cpu():
        supported = bench.ranks.supports(torch.float16)
        config = bench.student_ds("zero2.json", fp16=FP16)
        options = {"precision": "fp16", "faults": faults}
        whole = story(make_trainer(bench, "fp16", config, **options))
        first = story(make_trainer(bench, "fp16_parts", config, max_steps=3, **options))
        second = story(make_trainer(bench, "fp16_parts", config, first_attempt=5, **options))
    for folder in whole["checkpoints"]:
        scan_pickles(bench.folder / "fp16" / folder, CHECKPOINT_CLASSES)
    return {
        "whole": whole,
        "first": first,
        "second": second,
        "rates": [schedule().at(step) for step in range(6)],
        "supported": supported,
    }


def int8_story(bench: Bench) -> dict:
    """Six steps in fp16, the last three of them int8's and one of these skipped, at once and in two starts that part
    where int8 begins; and what becomes of the first steps without it."""
    with fp16_on_cpu():
        config = bench.student_ds("zero2.json", fp16=FP16)
        options = {"precision": "fp16", "faults": {4: OVERFLOW}, "quantized_from": 3}
        whole = story(make_trainer(bench, "int8", config, **options))
        first = story(make_trainer(bench, "int8_parts", config, max_steps=3, **options))
        resumed = make_trainer(bench, "int8_parts", config, first_attempt=3, **options)
        second = story(resumed)
        plain = make_trainer(bench, "int8_none", config, precision="fp16", faults=options["faults"])
        never = story(plain)
    names = [list(trainer.student.module.state_dict()) for trainer in (resumed, plain)]
    return {"whole": whole, "first": first, "second": second, "never": never, "same_names": names[0] == names[1]}


def fp16_floor(bench: Bench) -> dict:
    """Overflow after overflow until the scale cannot fall any further."""
    goal = tiny.objective()
    with fp16_on_cpu():
        config = bench.student_ds("zero2.json", fp16={**FP16, "initial_scale_power": 1, "hysteresis": 1})
        module = tiny.student(bench.teachers / "blenderbot", goal)
        student = bench.student(module, config, ADAM)
        teacher = bench.teacher(precision="fp16")
        group = rank_groups(61, bench.ranks, 1, 1)[0]
        before, scales = digest(module), []
        try:
            for _ in range(5):
                spoil = OVERFLOW if bench.ranks.rank else 1.0
                scales.append(bench.take_step(student, teacher, goal, group, 1e-3, spoil)[1].loss_scale)
            said = "nothing"
        except StudentEngineError as error:
            said = str(error)
    return {"said": said, "scales": scales, "moved": digest(module) != before}
