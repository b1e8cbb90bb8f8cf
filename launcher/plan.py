"""A run on a cluster that nobody has started yet: does it fit, what moves, how long does a step take.

Times are estimates: matrix products and transfers at a share of the data sheet's speed (the EFFICIENCY constants), the
teacher's gathering beside its own arithmetic, the gradients' reduction beside the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill_engine.families.shape import Shape
from launcher.hardware import Gpu
from launcher.job import FULL, Job, has_projections, kernel
from launcher.loss_memory import attentions, compared_tokens
from launcher.memory_model import host_memory, memory, memory_before
from launcher.traffic import (
    HOOK_SECONDS,
    HOP_BETWEEN,
    HOP_WITHIN,
    LINK_EFFICIENCY,
    Traffic,
    hook_seconds,
    overlaps,
    seconds,
    traffic,
    update_bytes,
)

COMPUTE_EFFICIENCY = 0.40
USABLE_MEMORY = 0.92  # the allocator loses some to fragments
_PASSES_OVER_SCORES = 10  # of 32-bit matrices, where a loss builds them whole (docs/kernels.md)


@dataclass(frozen=True)
class Plan:
    """The answer.

    memory   item -> bytes on each GPU
    before   item -> bytes on rank 0's GPU before the first step, where all of `memory` is yet to come
    host     item -> bytes in each node's host memory
    traffic  who -> what moves in an optimizer step
    times    part of a step -> seconds; they add up to a step
    """

    job: Job
    gpu: Gpu
    memory: dict[str, float]
    before: dict[str, float]
    host: dict[str, float]
    traffic: dict[str, Traffic]
    times: dict[str, float]

    @property
    def needed(self) -> float:
        """Bytes on each GPU while it trains."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether that is less than a GPU can really give."""
        return fits(self.job, self.gpu)

    @property
    def seconds(self) -> float:
        """Of one optimizer step."""
        return sum(self.times.values())

    @property
    def examples_per_second(self) -> float:
        """Of all ranks together."""
        return self.job.ranks * self.job.micro_batch * self.job.accumulation / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Context and label positions of all ranks together."""
        positions = (self.job.contexts + self.job.labels) * self.job.accumulation
        return self.job.ranks * positions / self.seconds


def make_plan(job: Job, gpu: Gpu) -> Plan:
    """Everything about one set-up."""
    moved = traffic(job)
    return Plan(job, gpu, memory(job), memory_before(job), host_memory(job), moved, _times(job, gpu, moved))


def fits(job: Job, gpu: Gpu) -> bool:
    """Whether each GPU can hold it, before the first step and after."""
    return max(sum(moment(job).values()) for moment in (memory, memory_before)) <= gpu.memory * USABLE_MEMORY


def assumptions(gpu: Gpu) -> dict[str, str]:
    """What the times rest on, for people who read them."""
    return {
        "arithmetic": f"{COMPUTE_EFFICIENCY:.0%} of {gpu.flops / 1e12:g} Tflop/s (16 bit)",
        "links": f"{LINK_EFFICIENCY:.0%} of {gpu.link / 1e9:g} GB/s within a node, {gpu.network / 1e9:g} GB/s per GPU "
        f"between nodes, {gpu.host / 1e9:g} GB/s to the host's memory",
        "latency": f"{HOP_WITHIN * 1e6:g} us for a hop within a node, {HOP_BETWEEN * 1e6:g} us between nodes; rings, "
        "and trees for all-reduce",
        "overlap": "the teacher's gathering beside its own arithmetic, the reduction of gradients beside the backward "
        "pass; nothing else",
        "ZeRO-3's hooks": f"{HOOK_SECONDS * 1e3:g} ms of the host for each layer of a teacher pass, beside gathering "
        "and arithmetic (benchmarks/hooks.py; a faster host needs less)",
        "sequences": "every example is as long as data.context_tokens (or a window of sound) and data.label_tokens",
        "samples": "each (rollout.source: student) runs to its limit, and each of its tokens reads the decoder once",
        "left out": "kernel launches and other Python (for each token of a sample), data loading, validation, "
        "checkpoints, stragglers, the rounding of last steps (student.quantize)",
    }


# ---- times -----------------------------------------------------------------------------------------------------------


def _times(job: Job, gpu: Gpu, moved: dict[str, Traffic]) -> dict[str, float]:
    passes = job.accumulation
    speed = gpu.flops * COMPUTE_EFFICIENCY * (1.0 if job.word == 2 else 0.25)
    encoder, decoder = (flops(job.student, job) / speed * passes for flops in (_encoder_flops, _decoder_flops))
    again = 3 if job.recipe.student.activation_checkpointing else 2
    backward = again * (decoder + (0.0 if job.recipe.student.encoder_is_frozen else encoder))
    teaching = sum(_decoder_flops(one, job) for one in job.all_loaded) / speed * passes
    if not job.shared:
        teaching += sum(_encoder_flops(one, job) for one in job.all_loaded) / speed * passes
    comparing = _loss_flops(job) / speed * passes + _loss_bytes(job) / gpu.hbm * passes
    gathering, reducing, spreading = (seconds(who, one, job, gpu) for who, one in moved.items())
    return {
        "the student's own samples": _sampling(job, gpu),
        "teacher": teaching,
        "waiting for the teacher's weights": max(0.0, gathering - teaching),
        "waiting for ZeRO-3's hooks": max(0.0, hook_seconds(job) - max(gathering, teaching)),
        "student forward": encoder + decoder,
        "losses": comparing,
        "student backward": backward,
        "waiting for gradients": max(0.0, reducing - (backward if overlaps(job) else 0.0)),
        "optimizer": update_bytes(job) / (gpu.host_memory if job.offloaded else gpu.hbm),
        "sending the new weights": spreading,
    }


def _sampling(job: Job, gpu: Gpu) -> float:
    """A token of a sample is a pass of the decoder at one position: its weights are read once for all examples, and
    the keys and values of what stands before. Every sample runs to its limit."""
    rollout, shape, data = job.recipe.rollout, job.student, job.recipe.data
    if rollout.source != "student":
        return 0.0
    tokens = rollout.new_tokens or data.label_tokens
    weights = shape.decoder_layers * shape.decoder_layer + shape.embedding
    cached = job.micro_batch * (job.context_length + tokens / 2) * 2 * shape.width * shape.decoder_layers
    read = tokens * (weights + cached) * job.word / gpu.hbm
    forward = (0.0 if job.shared else _encoder_flops(shape, job)) + _decoder_flops(shape, job)
    arithmetic = forward / (gpu.flops * COMPUTE_EFFICIENCY * (1.0 if job.word == 2 else 0.25))
    return rollout.share * job.accumulation * (read + arithmetic)


def _encoder_flops(shape: Shape, job: Job) -> float:
    """Forward: two for each parameter and position, plus the attention products; the convolutions of a window."""
    linear = job.contexts * shape.encoder_layers * shape.encoder_layer
    if shape.window is not None:
        linear += job.contexts * 3 * shape.width * (2 * shape.window.channels + shape.width)
    pairs = shape.encoder_layers * job.contexts * job.context_length
    return 2.0 * linear + 4.0 * pairs * shape.width


def _decoder_flops(shape: Shape, job: Job) -> float:
    """The same with the output; keys and values of the context are made for each of its positions."""
    cross = 2 * (shape.width * shape.width + shape.width)
    linear = job.contexts * shape.decoder_layers * cross
    linear += job.labels * (shape.decoder_layers * (shape.decoder_layer - cross) + shape.embedding)
    pairs = shape.decoder_layers * job.labels * (job.recipe.data.label_tokens + job.context_length)
    return 2.0 * linear + 4.0 * pairs * shape.width


def _loss_flops(job: Job) -> float:
    """Products of the terms themselves, forward and backward: projections and attention scores (docs/kernels.md)."""
    if job.compared is None:
        return 0.0
    own, width = job.student.width, job.compared.width
    products = 3 if kernel(job, "hidden") == "reference" else 4
    projected = has_projections(job.recipe, job.student, job.compared)
    linear = 2.0 * products * sum(compared_tokens(job)) * own * width if projected else 0.0
    pairs = sum(one.layers * one.scores for one in attentions(job))
    again = 0 if kernel(job, "attention") == "reference" else 2 * (own + width)  # the backward pass forms scores again
    return linear + pairs * (2.0 * (own + width) + again + 4.0 * own)


def _loss_bytes(job: Job) -> float:
    """Passes over whole matrices, where the reference builds them."""
    if job.compared is None or kernel(job, "attention") != "reference":
        return 0.0
    scores = sum(one.layers * one.scores for one in attentions(job)) * job.compared.heads
    return float(_PASSES_OVER_SCORES * FULL * scores)
