"""Bytes that a run needs on each GPU, item by item. Formulas only; nothing is measured here.

Letters as in the rest of the engine: B examples of a micro-batch, S context and T label tokens, D width, V vocabulary.
Sequences are taken at their full length, so the figures are upper bounds for shorter data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill_engine.recipe.schema import Recipe
from launcher.shapes import ModelShape

FULL = 4  # bytes of a 32-bit number
_PREFETCH, _MAX_LIVE, _BUCKET = 50_000_000, 1_000_000_000, 500_000_000  # DeepSpeed's own defaults, in elements
_RUNTIME = 1.5e9  # GPU context, communication buffers and libraries' workspaces


@dataclass(frozen=True)
class Job:
    """What is run and on how many ranks.

    student_ds, teacher_ds  the two DeepSpeed JSONs, as read
    """

    recipe: Recipe
    student: ModelShape
    teacher: ModelShape | None
    student_ds: Mapping[str, Any]
    teacher_ds: Mapping[str, Any]
    ranks: int
    ranks_per_node: int
    micro_batch: int
    accumulation: int

    @property
    def word(self) -> int:
        """Bytes of a number in both models."""
        return 2 if any(self.student_ds.get(name, {}).get("enabled") for name in ("fp16", "bf16")) else FULL

    @property
    def offloaded(self) -> bool:
        """Whether the optimizer lives in the host's memory."""
        return self._zero(self.student_ds).get("offload_optimizer", {}).get("device") in ("cpu", "nvme")

    @property
    def trained(self) -> int:
        """Parameters of student and projections."""
        return self.student.parameters + projection_parameters(self.recipe, self.student, self.teacher)

    @staticmethod
    def _zero(config: Mapping[str, Any]) -> Mapping[str, Any]:
        zero = config.get("zero_optimization", {})
        return zero if isinstance(zero, dict) else {}


def memory(job: Job) -> dict[str, float]:
    """Bytes per GPU by item, the largest moment of a step."""
    return {
        "teacher shard": teacher_shard(job),
        "teacher layers gathered": gathered(job),
        "student": float(job.trained * job.word),
        "gradients": gradients(job),
        "optimizer": optimizer(job),
        "activations": activations(job),
        "captured features": captured(job),
        "losses": losses(job),
        "runtime": _RUNTIME,
    }


def teacher_shard(job: Job) -> float:
    """Each rank keeps its part of every parameter."""
    return 0.0 if job.teacher is None else job.teacher.parameters * job.word / job.ranks


def gathered(job: Job) -> float:
    """The layer that is computed and what is fetched ahead of it; never more than the whole teacher."""
    if job.teacher is None or job.ranks == 1:
        return 0.0
    zero = Job._zero(job.teacher_ds)
    ahead = int(zero.get("stage3_prefetch_bucket_size", _PREFETCH))
    live = int(zero.get("stage3_max_live_parameters", _MAX_LIVE))
    largest = max(job.teacher.decoder_layer, job.teacher.encoder_layer, job.teacher.embedding)
    wanted = min(largest + ahead + job.teacher.embedding, max(live, largest))
    return float(min(job.teacher.parameters, wanted) * job.word)


def gradients(job: Job) -> float:
    """ZeRO-2: this rank's share, and two buckets on their way while the backward pass goes on."""
    bucket = int(Job._zero(job.student_ds).get("reduce_bucket_size", _BUCKET))
    buckets = 2 * min(bucket, job.trained)
    share = 0 if job.offloaded else job.trained / job.ranks
    return float((share + buckets) * job.word)


def optimizer(job: Job) -> float:
    """This rank's share of 32-bit weights and the optimizer's moments."""
    if job.offloaded:
        return 0.0
    section = job.recipe.optimizer
    moments = int(section.momentum > 0) if section.name == "sgd" else 2 + int(section.amsgrad)
    return float(job.trained / job.ranks * (1 + moments) * FULL)


def activations(job: Job) -> float:
    """What the student's backward pass reads: inputs of every product and norm, attention without its scores."""
    shape, rows = job.student, job.micro_batch
    encoder, decoder = rows * job.recipe.data.context_tokens, rows * job.recipe.data.label_tokens
    one_encoder = encoder * (9 * shape.width + 2 * shape.ffn)
    one_decoder = decoder * (14 * shape.width + 2 * shape.ffn) + encoder * 2 * shape.width
    if job.recipe.student.activation_checkpointing:
        kept = (shape.encoder_layers * encoder + shape.decoder_layers * decoder) * shape.width
        return float((kept + max(one_encoder, one_decoder)) * job.word)
    return float((shape.encoder_layers * one_encoder + shape.decoder_layers * one_decoder) * job.word)


def captured(job: Job) -> float:
    """The teacher's features of mapped layers; the student's are activations already."""
    if job.teacher is None:
        return 0.0
    weights, width = job.recipe.losses.weights, job.teacher.width
    rows, data = job.micro_batch, job.recipe.data
    context, label = rows * data.context_tokens, rows * data.label_tokens
    both = job.student.encoder_layers * context + job.student.decoder_layers * label
    elements = 0
    elements += width * context if weights.encoder else 0
    elements += width * (context + label) if weights.embedding else 0
    elements += width * both if weights.hidden else 0
    elements += 2 * width * both if weights.self_attention else 0
    elements += width * job.student.decoder_layers * (context + label) if weights.cross_attention else 0
    return float(elements * job.word)


def losses(job: Job) -> float:
    """Logits of both models with their 32-bit copies, and the attention scores of one pair of layers at a time."""
    weights, data, rows = job.recipe.losses.weights, job.recipe.data, job.micro_batch
    logits = rows * data.label_tokens * job.student.vocab
    taught = job.teacher is not None and weights.prediction > 0
    total = float(logits * (2 * job.word + 2 * FULL + (job.word + FULL if taught else 0)))
    if job.teacher is None:
        return total
    keys = max(data.context_tokens, data.label_tokens)
    scores = rows * job.teacher.heads * keys * keys
    pairs = (job.student.encoder_layers + job.student.decoder_layers) if weights.self_attention else 0
    pairs += job.student.decoder_layers if weights.cross_attention else 0
    return total + float(scores * FULL * (2 * pairs + (4 if pairs else 0)))


def projection_parameters(recipe: Recipe, student: ModelShape, teacher: ModelShape | None) -> int:
    """Linear maps beside the student, one for each feature that is compared at the teacher's width."""
    if teacher is None or (student.width == teacher.width and recipe.student.projections == "auto"):
        return 0
    weights = recipe.losses.weights
    maps = int(weights.encoder > 0) + 2 * int(weights.embedding > 0)
    maps += (student.encoder_layers + student.decoder_layers) if weights.hidden else 0
    return maps * (student.width * teacher.width + teacher.width)
