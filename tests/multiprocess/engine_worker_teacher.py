"""The sharded teacher: its features, what it keeps, and whether it grows."""

import gc
import os
import resource
from pathlib import Path

import tiny_models as tiny
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from engine_worker_bench import Bench, PlainTeacher

from distill_engine.engine.teacher import TeacherEngine
from distill_engine.student.projections import feature_tensors
from distill_engine.values import AttentionKind, FeatureRequest, Stack

WARM_UP, STEPS = 40, 200


def parity(bench: Bench) -> dict:
    """Features of the sharded and of the plain teacher, per family; what a rank holds; states after the pass."""
    return {family: _parity(bench, family) for family in ("blenderbot", "bart")}


def _parity(bench: Bench, family: str) -> dict:
    goal = tiny.objective()
    # different batches per rank: nothing but parameters may be exchanged
    batch = tiny.batch(tiny.examples(4, family, seed=bench.ranks.rank), family)
    teacher = bench.teacher(family)
    features = teacher.features(batch, goal.teacher_request())
    plain = PlainTeacher(bench.teachers / family)
    parameters = list(_model(teacher).parameters())
    wanted = feature_tensors(plain.features(batch, goal.teacher_request()))
    common = tiny.batch(tiny.examples(4, family, seed=9), family)
    probe = teacher.probe(common)
    return {
        "features": feature_tensors(features),
        "wanted": wanted,
        "searched": teacher.overflow(batch),
        "probe_is_logits": torch.equal(probe, teacher.features(common, FeatureRequest()).logits),
        "held": sum(p.ds_tensor.numel() for p in parameters),
        "whole_left": sum(p.numel() for p in parameters),
        "all": sum(p.numel() for p in plain.model.parameters()),
        "unavailable": all(p.ds_status == ZeroParamStatus.NOT_AVAILABLE for p in parameters),
        "frozen": not any(p.requires_grad for p in parameters),
        "in_training_mode": _model(teacher).training,
        "gradients_asked": any(t.requires_grad for t in feature_tensors(features)),
    }


def head(bench: Bench) -> dict:
    """The factors of the logits, on three batches, with whole logits asked for in between; per family."""
    return {family: _head(bench, family) for family in ("blenderbot", "bart")}


def _head(bench: Bench, family: str) -> dict:
    teacher, plain = bench.teacher(family), PlainTeacher(bench.teachers / family)
    pairs = []
    for seed in range(3):
        batch = tiny.batch(tiny.examples(4, family, seed=2 * seed + bench.ranks.rank), family)
        factors = teacher.features(batch, FeatureRequest(logits=False, head=True)).head
        masked = -1 if factors.masked_id is None else factors.masked_id
        never = torch.arange(factors.embedding.shape[0]) == masked
        logits = (factors.hidden @ factors.embedding.T + factors.bias).masked_fill(never, -1e20)
        pairs += [(logits, plain.features(batch, FeatureRequest()).logits)]
        pairs += [(teacher.features(batch, FeatureRequest()).logits, pairs[-1][1])]
    available = [n for n, p in _model(teacher).named_parameters() if p.ds_status != ZeroParamStatus.NOT_AVAILABLE]
    return {"pairs": pairs, "available": available}


def growth(bench: Bench) -> dict:
    """Memory and live tensors while the teacher works, after warm-up and at the end; batches of changing length."""
    if bench.ranks.rank == 0:
        tiny.save_teacher(bench.folder / "small_teacher", "blenderbot", layers=(1, 1))
    bench.ranks.barrier()
    teacher = bench.load_teacher(bench.folder / "small_teacher")
    training = FeatureRequest(encoder_output=True, hidden={Stack.DECODER: (0,)}, attention={AttentionKind.CROSS: (0,)})
    batches = [tiny.batch(tiny.examples(2, "blenderbot", seed), "blenderbot") for seed in range(4)]
    marks = []
    for step in range(1, STEPS + 1):
        teacher.features(batches[step % 4], training if step % 2 else FeatureRequest())
        if step % WARM_UP == 0:
            marks.append({"tensors": _live_tensors(), "resident": _resident_bytes()})
    parameters = list(_model(teacher).parameters())
    teacher_bytes = 4 * sum(p.ds_numel for p in parameters)
    return {
        "marks": marks,
        "teacher_bytes": teacher_bytes,
        "unavailable": all(p.ds_status == ZeroParamStatus.NOT_AVAILABLE for p in parameters),
    }


def _model(teacher: TeacherEngine):
    return teacher._module.model  # the engine offers no way to its parameters, and should not


def _live_tensors() -> int:
    gc.collect()
    return sum(1 for one in gc.get_objects() if issubclass(type(one), torch.Tensor))


def _resident_bytes() -> int:
    pages = int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1])
    return pages * resource.getpagesize()
