"""A run on a cluster that nobody has started yet: does it fit, what moves, how long does a step take.

Times are estimates: matrix products and transfers at a share of the data sheet's speed (the EFFICIENCY constants), the
teacher's gathering beside its own arithmetic, the gradients' reduction beside the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from launcher.hardware import Gpu
from launcher.memory_model import FULL, Job, memory
from launcher.shapes import ModelShape

COMPUTE_EFFICIENCY = 0.40
LINK_EFFICIENCY = 0.75
USABLE_MEMORY = 0.92  # the allocator loses some to fragments


@dataclass(frozen=True)
class Traffic:
    """Bytes per optimizer step. within: into each GPU from its own node; between: into each node from others."""

    within: float
    between: float


@dataclass(frozen=True)
class Plan:
    """The answer.

    memory   item -> bytes on each GPU
    traffic  who -> bytes per optimizer step
    times    part of a step -> seconds; they add up to a step
    """

    job: Job
    gpu: Gpu
    memory: dict[str, float]
    traffic: dict[str, Traffic]
    times: dict[str, float]

    @property
    def needed(self) -> float:
        """Bytes on each GPU."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether that is less than a GPU can really give."""
        return self.needed <= self.gpu.memory * USABLE_MEMORY

    @property
    def seconds(self) -> float:
        """Of one optimizer step."""
        return sum(self.times.values())

    @property
    def examples_per_second(self) -> float:
        """Of all ranks together."""
        return self.job.ranks * self.job.micro_batch * self.job.accumulation / self.seconds


def make_plan(job: Job, gpu: Gpu) -> Plan:
    """Everything about one set-up."""
    traffic = _traffic(job)
    return Plan(job, gpu, memory(job), traffic, _times(job, gpu, traffic))


def remedies(job: Job, gpu: Gpu) -> list[str]:
    """Each knob that alone makes a run fit, with the value that does, gentlest first; empty when none does."""
    found = []
    batch = next((b for b in range(job.micro_batch - 1, 0, -1) if _fits(_with_batch(job, b), gpu)), None)
    if batch is not None:
        accumulation = _with_batch(job, batch).accumulation
        found.append(f"batch.per_rank: {batch}, batch.accumulation_steps: {accumulation}")
    student = job.recipe.student.model_copy(update={"activation_checkpointing": True})
    recomputing = replace(job, recipe=job.recipe.model_copy(update={"student": student}))
    offloading = replace(job, student_ds=_offloaded(job))
    knobs: list[tuple[str, Job]] = [
        ("student.activation_checkpointing: true", recomputing),
        ("the DeepSpeed config ds_configs/zero2_offload.json", offloading),
    ]
    found += [text for text, changed in knobs if _fits(changed, gpu)]
    more = _first(lambda n: _fits(replace(job, ranks=job.ranks * n), gpu), (2, 4, 8, 16, 32, 64))
    if more:
        found.append(f"{more} times as many nodes")
    if not found:
        both = replace(_with_batch(recomputing, 1), student_ds=_offloaded(job))
        if _fits(both, gpu):
            found.append("batch.per_rank: 1 with activation checkpointing and offloading together")
    return found


def _fits(job: Job, gpu: Gpu) -> bool:
    return sum(memory(job).values()) <= gpu.memory * USABLE_MEMORY


def _with_batch(job: Job, batch: int) -> Job:
    """A smaller micro-batch, and as many more of them, rounded up."""
    accumulation = -(-job.micro_batch * job.accumulation // batch)
    return replace(job, micro_batch=batch, accumulation=accumulation)


def _offloaded(job: Job) -> dict[str, object]:
    zero = dict(job.student_ds.get("zero_optimization", {}))
    return {**job.student_ds, "zero_optimization": {**zero, "offload_optimizer": {"device": "cpu"}}}


def _first(good: Callable[[int], bool], numbers: tuple[int, ...]) -> int | None:
    return next((number for number in numbers if good(number)), None)


def _traffic(job: Job) -> dict[str, Traffic]:
    """Ring collectives: every rank receives (ranks - 1) / ranks of the whole, as does every node from outside."""
    teacher = 0 if job.teacher is None else job.teacher.parameters * job.word * job.accumulation
    trained = job.trained * job.word
    return {
        "teacher gathering": _ring(job, teacher),
        "gradient reduction": _ring(job, trained),
        "student weights": _ring(job, trained),
    }


def _ring(job: Job, whole: float) -> Traffic:
    moved = whole * (job.ranks - 1) / job.ranks
    return Traffic(moved if job.ranks_per_node > 1 else 0.0, moved if job.ranks > job.ranks_per_node else 0.0)


def _times(job: Job, gpu: Gpu, traffic: dict[str, Traffic]) -> dict[str, float]:
    passes = job.accumulation
    speed = gpu.flops * COMPUTE_EFFICIENCY * (1.0 if job.word == 2 else 0.25)
    forward = _forward_flops(job.student, job) / speed * passes
    backward = forward * (3 if job.recipe.student.activation_checkpointing else 2)
    teaching = 0.0 if job.teacher is None else _forward_flops(job.teacher, job) / speed * passes
    gathering, reducing, spreading = (_seconds(one, gpu, job.ranks_per_node) for one in traffic.values())
    update = job.trained / job.ranks * 7 * FULL / gpu.hbm  # weights, two moments, gradient: read, and written again
    return {
        "teacher": teaching,
        "waiting for the teacher's weights": max(0.0, gathering - teaching),
        "student forward": forward,
        "student backward": backward,
        "waiting for gradients": max(0.0, reducing - backward / passes),
        "optimizer": update,
        "sending the new weights": spreading,
    }


def _seconds(one: Traffic, gpu: Gpu, ranks_per_node: int) -> float:
    within = one.within / (gpu.link * LINK_EFFICIENCY)
    between = one.between / (gpu.network * ranks_per_node * LINK_EFFICIENCY)
    return max(within, between)  # rings run over both at once; the slower one decides


def _forward_flops(shape: ModelShape, job: Job) -> float:
    """Two for each parameter and token, plus the attention products."""
    rows, data = job.micro_batch, job.recipe.data
    context, label = rows * data.context_tokens, rows * data.label_tokens
    cross = 2 * (shape.width * shape.width + shape.width)  # keys and values of the context
    linear = context * (shape.encoder_layers * shape.encoder_layer + shape.decoder_layers * cross)
    linear += label * (shape.decoder_layers * (shape.decoder_layer - cross) + shape.embedding)
    pairs = shape.encoder_layers * context * data.context_tokens
    pairs += shape.decoder_layers * label * (data.label_tokens + data.context_tokens)
    return 2.0 * linear + 4.0 * pairs * shape.width
