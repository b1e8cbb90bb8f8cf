"""What makes a run fit that does not: settings, each tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from launcher.hardware import Gpu
from launcher.job import Job, zero
from launcher.plan import fits


def remedies(job: Job, gpu: Gpu) -> list[str]:
    """Each knob that alone makes a run fit, with the value that does, gentlest first; empty when none does."""
    found = [text for text, changed in _knobs(job) if fits(changed, gpu)]
    batch = next((b for b in range(job.micro_batch - 1, 0, -1) if fits(_with_batch(job, b), gpu)), None)
    if batch is not None:
        found.insert(0, _batch_text(job, _with_batch(job, batch)))
    more = _first(lambda n: fits(replace(job, ranks=job.ranks * n), gpu), (2, 4, 8, 16, 32, 64))
    if more:
        found.append(f"{more} times as many nodes")
    if not found:
        both = replace(_changed(_with_batch(job, 1), "student", activation_checkpointing=True), **_offloaded(job))
        if fits(both, gpu):
            found.append(f"{_batch_text(job, both)} with activation checkpointing and offloading together")
    return found


def _knobs(job: Job) -> Iterator[tuple[str, Job]]:
    """Single settings that are not as sparing as they could be."""
    alone = ", teacher.overlap: false" if job.recipe.teacher.overlap else ""  # which shards cannot go with
    for placement in _sparing(job):
        changed = _changed(job, "teacher", placement=placement, overlap=False)
        yield f"teacher.placement: {placement}{alone}", changed
    if job.recipe.teacher.window and job.accumulation > 1:
        yield "teacher.window: false", _changed(job, "teacher", window=False)
    if job.recipe.teacher.overlap:
        yield "teacher.overlap: false", _changed(job, "teacher", overlap=False)
    kernels = job.recipe.losses.kernels
    for group in ("attention", "hidden", "prediction"):
        if group == "prediction" and job.others:
            continue  # the mean of several teachers has no factors
        if getattr(kernels, group) == "reference" or (group == "prediction" and kernels.prediction == "auto"):
            fused = kernels.model_copy(update={group: "fused"})
            yield f"losses.kernels.{group}: fused", _changed(job, "losses", kernels=fused)
    if not job.recipe.student.activation_checkpointing:
        yield (
            "student.activation_checkpointing: true",
            _changed(job, "student", activation_checkpointing=True),
        )
    if not job.offloaded:
        yield "the DeepSpeed config ds_configs/zero2_offload.json", replace(job, **_offloaded(job))


def _sparing(job: Job) -> list[str]:
    """Placements that need less than the present one, those that move least first."""
    order = ["replica", "node", "zero3", "offload"]
    return [] if job.loaded is None else order[order.index(job.placement) + 1 :]


def _changed(job: Job, section: str, **values: Any) -> Job:
    """The same job with other values in one section of the recipe."""
    part = getattr(job.recipe, section).model_copy(update=values)
    return replace(job, recipe=job.recipe.model_copy(update={section: part}))


def _with_batch(job: Job, batch: int) -> Job:
    """A smaller micro-batch, and as many more of them, rounded up."""
    accumulation = -(-job.micro_batch * job.accumulation // batch)
    changed = replace(job, micro_batch=batch, accumulation=accumulation)
    if job.recipe.batch.max_tokens is None:
        return changed
    return _changed(changed, "batch", max_tokens=batch * job.example_length)


def _batch_text(before: Job, after: Job) -> str:
    accumulation = f"batch.accumulation_steps: {after.accumulation}"
    if before.recipe.batch.max_tokens is None:
        return f"batch.per_rank: {after.micro_batch}, {accumulation}"
    return f"batch.max_tokens: {after.recipe.batch.max_tokens}, {accumulation}"


def _offloaded(job: Job) -> dict[str, Any]:
    block = {**zero(job.student_ds), "offload_optimizer": {"device": "cpu"}}
    return {"student_ds": {**job.student_ds, "zero_optimization": block}}


def _first(good: Callable[[int], bool], numbers: tuple[int, ...]) -> int | None:
    return next((number for number in numbers if good(number)), None)
