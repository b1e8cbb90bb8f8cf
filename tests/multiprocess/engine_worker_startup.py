"""What must not start: half a teacher, a whole one, a sharded student, another ZeRO stage."""

import os
import shutil
from collections.abc import Callable

import deepspeed
import tiny_models as tiny
from engine_worker_bench import SGD, Bench
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM
from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

from distill_engine.engine import teacher_weights
from distill_engine.engine.student import StudentEngine, StudentEngineError
from distill_engine.engine.teacher_weights import TeacherError
from distill_engine.models.adapter import adapt
from distill_engine.student.projections import StudentModule

GONE = "model.decoder.layers.1.fc1.weight"
MISSHAPEN = "model.encoder.layers.0.self_attn.k_proj.bias"


def refusals(bench: Bench) -> dict[str, str]:
    """What each broken start says."""
    return {
        "missing": _said(lambda: _broken_teacher(bench, "missing")),
        "unexpected": _said(lambda: _broken_teacher(bench, "unexpected")),
        "mismatched": _said(lambda: _broken_teacher(bench, "mismatched")),
        "truncated": _said(lambda: _broken_teacher(bench, "truncated")),
        "no_folder": _said(lambda: bench.load_teacher(bench.folder / "nowhere")),
        "whole_teacher": _said(lambda: _unsharded_teacher(bench)),
        "leaked": _said(lambda: _leaked_student(bench)),
        "stage": _said(lambda: _other_stage(bench)),
    }


def _said(start: Callable[[], object]) -> str:
    try:
        start()
    except (TeacherError, StudentEngineError) as error:
        return f"{type(error).__name__}: {error}"
    return "started"


def _broken_teacher(bench: Bench, how: str) -> object:
    folder = bench.folder / f"{how}_teacher"
    if bench.ranks.rank == 0:
        shutil.copytree(bench.teachers / "blenderbot", folder)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        if how == "missing":
            del tensors[GONE]
        elif how == "unexpected":
            tensors["model.decoder.layers.9.fc1.weight"] = tensors[GONE].clone()
        elif how == "mismatched":
            tensors[MISSHAPEN] = tensors[MISSHAPEN][:-4].clone()
        save_file(tensors, file, metadata={"format": "pt"})
        if how == "truncated":
            os.truncate(file, file.stat().st_size // 2)
    bench.ranks.barrier()
    return bench.load_teacher(folder)


def _unsharded_teacher(bench: Bench) -> object:
    """As if transformers no longer looked at the configuration that was set for it."""
    kept = teacher_weights.HfDeepSpeedConfig
    teacher_weights.HfDeepSpeedConfig = dict
    try:
        return bench.load_teacher(bench.teachers / "blenderbot")
    finally:
        teacher_weights.HfDeepSpeedConfig = kept


def _leaked_student(bench: Bench) -> object:
    leak = HfDeepSpeedConfig(bench.teacher_ds())
    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(bench.teachers / "blenderbot")
        return StudentEngine(StudentModule(adapt(model), None), bench.student_ds(), SGD)
    finally:
        del leak
        unset_hf_deepspeed_config()


def _other_stage(bench: Bench) -> object:
    """As if DeepSpeed took the liberty of another stage."""
    real = deepspeed.initialize

    def stage_1(*, config: dict, **rest: object):
        return real(config={**config, "zero_optimization": {**config["zero_optimization"], "stage": 1}}, **rest)

    deepspeed.initialize = stage_1
    try:
        return StudentEngine(tiny.student(bench.teachers / "blenderbot", tiny.objective()), bench.student_ds(), SGD)
    finally:
        deepspeed.initialize = real


def student_beside_leak(bench: Bench) -> dict:
    """The program's own way to build a student is whole even while the teacher's configuration is alive."""
    leak = HfDeepSpeedConfig(bench.teacher_ds())
    try:
        module = tiny.student(bench.teachers / "blenderbot", tiny.objective())
    finally:
        del leak
        unset_hf_deepspeed_config()
    return {
        "sharded": [name for name, p in module.named_parameters() if hasattr(p, "ds_id")],
        "parameters": bench.student(module).parameter_count(),
    }
