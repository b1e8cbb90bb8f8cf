"""The student's own samples of very unequal lengths on the ranks, scored by a teacher in shards; several teachers."""

import math

import tiny_models as tiny
import torch
from engine_worker_bench import ADAM, Bench, PlainTeacher, digest

from distill_engine.rollouts.config import RolloutSection
from distill_engine.rollouts.protocol import RolloutParts
from distill_engine.rollouts.student import STUDENT
from distill_engine.teachers.live import LiveTeacher
from distill_engine.teachers.mixture import Mixture
from distill_engine.values import FeatureRequest

LIMIT, STEPS = 20, 3
SHARES = (1.0, 3.0)


def unequal(bench: Bench) -> dict:
    """Rank 0 says nothing but the end, the others never end; with and without a teacher pass for all of a step."""
    return {window: _unequal(bench, window) for window in (False, True)}


def _unequal(bench: Bench, window: bool) -> dict:
    goal, rank = tiny.objective(), bench.ranks.rank
    student = bench.student(tiny.student(bench.teachers / "blenderbot", goal), bench.student_ds(accumulation=2), ADAM)
    teacher = LiveTeacher(bench.teacher(), window=window)
    ends = rank == 0
    never = [one for one in range(tiny.VOCABULARY) if (one != tiny.END) == ends]
    parts = RolloutParts(
        seed=1, rank=rank, world_size=bench.ranks.world_size, section=RolloutSection(share=0.6), new_tokens=LIMIT,
        layout=tiny.layout("blenderbot"), end_ids=(tiny.END,), suppressed=tuple(never), forced=None,
        pad_to_multiple_of=1, max_tokens=None,
    )  # fmt: skip
    rollout, found = STUDENT.open(parts), []
    for step in range(STEPS):
        group = [tiny.batch(tiny.examples(2, "blenderbot", 9 * step + 3 * rank + n), "blenderbot") for n in (0, 1)]
        group = rollout.batches(group, teacher, student)
        divisors = goal.divisors(group, bench.ranks.sum, bench.ranks.world_size)
        features, total = teacher.features(group, goal.teacher_request()), torch.zeros(())
        for batch, divisor in zip(group, divisors, strict=True):
            seen = student.features(batch, goal.student_request())
            share = goal.total(goal.terms(seen, next(features), batch), divisor)
            student.backward(share)
            total += share.detach()
        outcome = student.step(1e-3)
        found.append(
            {
                "sampled": [batch.sampled for batch in group],
                "lengths": [batch.label_mask.sum(dim=1).tolist() for batch in group],
                "finite": math.isfinite(bench.ranks.sum(total)),
                "applied": outcome.applied,
                "digest": digest(student.module),
            }
        )
    return {"steps": found, "training": student.module.training}


def mixture(bench: Bench) -> dict:
    """Two teachers in shards, and whole on every rank, beside the mean of what plain models predict."""
    second = bench.folder / "second_teacher"
    if bench.ranks.rank == 0:
        tiny.save_teacher(second, "blenderbot", seed=5, layers=(1, 2))
    bench.ranks.barrier()
    folders = (bench.teachers / "blenderbot", second)
    batch = tiny.batch(tiny.examples(3, "blenderbot", seed=bench.ranks.rank), "blenderbot")
    request = FeatureRequest(encoder_output=True)
    plain = [PlainTeacher(folder).features(batch, request) for folder in folders]
    shares = [share / sum(SHARES) for share in SHARES]
    wanted = sum(share * one.logits.double().softmax(-1) for share, one in zip(shares, plain, strict=True))
    found = {"wanted": wanted, "encoder_output": plain[0].encoder_output}
    for placement in ("zero3", "replica"):
        teachers = [LiveTeacher(bench.load_teacher(folder, placement=placement)) for folder in folders]
        mixed = Mixture(teachers, SHARES, 1.0)
        *_, seen = (one for _ in range(2) for one in mixed.features([batch], request))  # a second time, too
        found[placement] = (seen.logits.exp().double(), seen.encoder_output)
    return found
