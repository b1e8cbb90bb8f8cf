"""Bytes that a run needs on each GPU, item by item. Formulas only; nothing is measured here.

tests/cluster/test_plan_is_true.py compares every item with what DeepSpeed and autograd really allocate. Sequences are
taken at their full length, so the figures are upper bounds for shorter data. Items reach their largest size at
different moments, but they are added up: what one stream has freed another cannot take (CUDA's caching allocator).
"""

from __future__ import annotations

from distill_engine.families.shape import Shape
from distill_engine.losses.config import BALANCED_BY_GRADIENT
from launcher.job import FULL, Job, zero
from launcher.job import kernel as kernel_of
from launcher.loss_memory import captured, captured_of_student, losses
from launcher.narrow_memory import narrowing
from launcher.traffic import overlaps

# DeepSpeed's own defaults, in elements
_PREFETCH, _MAX_LIVE, _BUCKET, _PERSISTENT = 50_000_000, 1_000_000_000, 500_000_000, 100_000
NORM_BUCKET = 16_000_000  # of distill_engine.train.term_gradients, in elements; a test keeps them equal
_RUNTIME = 1.5e9  # GPU context, communication buffers and libraries' workspaces


def memory(job: Job) -> dict[str, float]:
    """Bytes per GPU by item, each at its largest moment of a step."""
    int8 = {"int8 copies": int8_copies(job)} if job.recipe.student.quantize else {}
    return {
        "teacher shard": teacher_shard(job),
        "teacher layers gathered": gathered(job),
        "teacher activations": teacher_activations(job),
        "student": float(job.weights * job.word),
        "gradients": gradients(job),
        "optimizer": optimizer(job),
        "activations": activations(job),
        "captured features": captured(job),
        "losses": losses(job),
        **int8,
        "runtime": _RUNTIME,
    }


def memory_before(job: Job) -> dict[str, float]:
    """Bytes on rank 0's GPU before the first step, where nothing of `memory` is there yet: for a teacher that is looked
    at there."""
    looking = narrowing(job) if job.placement == "replica" else 0.0
    return {"narrowing": looking, "runtime": _RUNTIME} if looking else {}


def host_memory(job: Job) -> dict[str, float]:
    """Bytes in the memory of each node's host, for what is offloaded to it, all its ranks together; and, before the
    first step and on rank 0's alone, for a teacher that is looked at there."""
    here = min(job.ranks, job.ranks_per_node)
    found = {}
    if job.loaded is not None and job.placement == "offload":
        found["teacher shards"] = float(teacher_parameters(job) * job.word / job.ranks * here)
    if job.offloaded:
        # weights, moments and gradient in 32 bits, and the new weights on their way back
        found["optimizer"] = float(job.trained / job.ranks * here * ((2 + moments(job)) * FULL + job.word))
    if job.placement != "replica" and (looking := narrowing(job)):
        found["narrowing (rank 0's node, before the first step)"] = looking
    return found


# ---- teacher ---------------------------------------------------------------------------------------------------------


def teacher_shard(job: Job) -> float:
    """What stays on the GPU: this rank's part of every parameter, all of a replica, nothing of what is offloaded."""
    if job.placement == "offload":
        return 0.0
    if job.placement == "replica":  # the encoder is the student's where they share it
        return float((teacher_parameters(job) - job.shared) * job.word)
    return teacher_parameters(job) * job.word / job.sharers


def teacher_parameters(job: Job) -> int:
    """Of all teachers that are in memory."""
    return sum(one.parameters for one in job.all_loaded)


def gathered(job: Job) -> float:
    """Whole parameters: of layers that are computed or fetched ahead, the buffers in which they arrive, and those small
    enough for DeepSpeed to keep; and the whole output embedding, which fused prediction keeps."""
    if job.loaded is None or job.placement == "replica":
        return 0.0
    output = job.loaded.embedding if kernel_of(job, "prediction") != "reference" else 0
    if job.sharers == 1 and job.placement != "offload":
        return float(output * job.word)
    # one teacher computes at a time; what the others keep whole stays
    each = [_gathered(job, one) - persistent(job, one) for one in job.all_loaded]
    kept = sum(persistent(job, one) for one in job.all_loaded)
    return float((max(each) + kept + output) * job.word)


def _gathered(job: Job, teacher: Shape) -> int:
    """Elements in its own pass."""
    arriving = min(teacher.parameters, _arriving(job, teacher)) if job.sharers > 1 else 0
    return live_parameters(job, teacher) + arriving


def persistent(job: Job, teacher: Shape) -> int:
    """Elements of parameters that DeepSpeed gathers once and keeps whole."""
    threshold = int(zero(job.teacher_ds).get("stage3_param_persistence_threshold", _PERSISTENT))
    return sum(size * count for size, count in teacher.tensors.items() if size <= threshold)


def live_parameters(job: Job, teacher: Shape) -> int:
    """Elements of parameters that are whole at a time, or on their way to be.

    Each module fetches up to a bucket of the next ones. A bucket that is larger than a layer runs ahead, module by
    module, up to the limit of live parameters, which the last tensor may overshoot. The embedding, which is the output
    layer as well, stays from the first module to the last.
    """
    bucket, limit = _ahead(job)
    layer = max(teacher.decoder_layer, teacher.encoder_layer)
    now = layer + teacher.embedding
    ahead = limit if bucket >= layer else min(limit, now + bucket)
    moving = max(now, ahead + _largest_tensor(teacher))
    return min(teacher.parameters, persistent(job, teacher) + moving)


def _arriving(job: Job, teacher: Shape) -> int:
    """Elements of one gather, whose buffer still stands while its parameters are copied out."""
    bucket, limit = _ahead(job)
    layer = max(teacher.decoder_layer, teacher.encoder_layer)
    return max(layer - bucket, min(bucket, limit) + _largest_tensor(teacher))


def _ahead(job: Job) -> tuple[int, int]:
    """Elements that DeepSpeed fetches ahead, and most of those that are whole."""
    config = zero(job.teacher_ds)
    bucket = int(config.get("stage3_prefetch_bucket_size", _PREFETCH))
    return bucket, int(config.get("stage3_max_live_parameters", _MAX_LIVE))


def _largest_tensor(teacher: Shape) -> int:
    return max(size for size in teacher.tensors if size != teacher.embedding)


def teacher_activations(job: Job) -> float:
    """The widest moment of one layer without gradients: residual, normed input and the two inner vectors; where whole
    logits come afterwards, only what is more than these."""
    if job.loaded is None:
        return 0.0
    logits = job.labels * job.loaded.vocab if kernel_of(job, "prediction") == "reference" else 0
    positions = job.labels if job.shared else max(job.contexts, job.labels)
    layer = positions * max(2 * one.width + 2 * one.ffn for one in job.all_loaded)
    return float(max(0, layer - logits) * job.word * job.held_batches)


# ---- student ---------------------------------------------------------------------------------------------------------


def gradients(job: Job) -> float:
    """ZeRO-2, at the largest of its moments."""
    return max(gradient_moments(job).values())


def gradient_moments(job: Job) -> dict[str, float]:
    """Bytes of gradients at the moments that may be the largest.

    backward   this rank's share, the reduction's buckets (made whole whatever the model's size), and the gradient of
               the embedding, which waits while several parts of the model add to it
    update     the share as the backward pass left it, flat, and in 32 bits
    measuring  every logging.gradient_norm_every_steps, or to balance by gradients: one whole gradient of the student,
               and of the part whose norm is taken 32-bit copies (joined, reduced, squared); for gradient_alignment
               one more whole gradient in 32 bits, which the others are compared with
    """
    share = 0.0 if job.offloaded else job.trained / job.ranks
    flat = job.word if job.word < FULL else 0
    balance = job.recipe.losses.balance
    measured = job.recipe.logging.gradient_norm_every_steps or balance in BALANCED_BY_GRADIENT
    whole = job.student.parameters if measured else 0
    compared = whole * FULL if balance == "gradient_alignment" else 0
    return {
        "backward": float((share + _buckets(job) + job.student.embedding) * job.word),
        "update": float(share * (job.word + flat + FULL)),
        "measuring": float(whole * job.word + min(whole, NORM_BUCKET) * 3 * FULL + compared),
    }


def _buckets(job: Job) -> int:
    """Elements of the buffers in which gradients wait for their reduction, two where it runs beside the backward."""
    config = zero(job.student_ds)
    bucket = int(config.get("reduce_bucket_size", _BUCKET))
    number = 2 if overlaps(job) else 1
    return number * (bucket if config.get("contiguous_gradients", True) else min(bucket, job.trained))


def optimizer(job: Job) -> float:
    """This rank's share of 32-bit weights and the optimizer's moments."""
    return 0.0 if job.offloaded else float(job.trained / job.ranks * (1 + moments(job)) * FULL)


def moments(job: Job) -> int:
    """Numbers that the optimizer keeps for each weight."""
    section = job.recipe.optimizer
    return int(section.momentum > 0) if section.name == "sgd" else 2 + int(section.amsgrad)


def activations(job: Job) -> float:
    """What the student's backward pass reads, with the layer that is being recomputed."""
    encoder, decoder = _layers(job)
    return kept_activations(job) + (max(encoder, decoder) if job.recipe.student.activation_checkpointing else 0.0)


def kept_activations(job: Job) -> float:
    """Inputs of products and norms, all that the forward pass leaves; of attention all but its scores.

    A layer of any family, about: input, normed input, queries, keys, values, mixed values, the same of the feed-forward
    part; the decoder's cross-attention besides, whose keys and values have the context's length. Dropout keeps a byte
    for each element. Outside the layers: the ends of both stacks and, scaled, the embeddings.
    """
    shape = job.student
    ends = 2 + int(bool(job.asked.embeddings) and shape.form.scaled_embeddings)
    outside = (job.contexts + job.labels) * shape.width * (ends * job.word + _dropout(job))
    if job.recipe.student.activation_checkpointing:
        trained = 0 if job.recipe.student.encoder_is_frozen else shape.encoder_layers
        inputs = (trained * job.contexts + shape.decoder_layers * job.labels) * shape.width * job.word
        return float(inputs + captured_of_student(job) + outside + _convolved(job) + _encoded(job))
    encoder, decoder = _layers(job)
    trained = 0 if job.recipe.student.encoder_is_frozen else shape.encoder_layers
    kept = max(encoder, trained * encoder) + shape.decoder_layers * decoder
    return float(kept + outside + _convolved(job) + _encoded(job))


def int8_copies(job: Job) -> float:
    """In the last steps (student.quantize): what the backward pass reads of linear layers once more, rounded, and the
    largest of them on its way, in 32 bits. Where activations are recomputed, of one layer at a time.

    Every weight; of inputs those that other operations keep as well (mixed values, the encoder's output), and where
    several layers read one input, a copy for each of them but the first.
    """
    shape = job.student
    inputs = (3 + int(shape.form.gated)) * shape.width
    encoder = shape.encoder_layer + job.contexts * inputs
    decoder = shape.decoder_layer + job.labels * (inputs + shape.width) + job.contexts * 2 * shape.width
    if job.recipe.student.activation_checkpointing:
        layers = max(encoder, decoder)
    else:
        layers = shape.encoder_layers * encoder + shape.decoder_layers * decoder
    largest = max(shape.embedding, shape.width * shape.ffn, max(job.contexts, job.labels) * shape.ffn)
    return float((layers + shape.embedding) * job.word + 3 * largest * FULL)


def _convolved(job: Job) -> float:
    """Of a window of sound: what the convolutions make, before and after their activation."""
    window = job.student.window
    if window is None or job.recipe.student.encoder_is_frozen:
        return 0.0
    return float(job.micro_batch * 2 * (window.frames + window.positions) * job.student.width * job.word)


def _encoded(job: Job) -> float:
    """Of a shared encoder, the output of all micro-batches of a step."""
    return float(job.contexts * job.student.width * job.word * job.accumulation) if job.shared else 0.0


def _layers(job: Job) -> tuple[int, int]:
    """Bytes of one encoder and of one decoder layer."""
    decoder = job.labels * _decoder_token(job) + job.contexts * 2 * job.student.width * job.word
    of_encoder, of_decoder = bias_masks(job)
    return job.contexts * _encoder_token(job) + of_encoder, decoder + of_decoder


def bias_masks(job: Job) -> tuple[int, int]:
    """Bytes of one encoder and one decoder layer's masks, which hold the position biases where a family has them: then
    attention is given a [B, H, Q, K] of its own, cross-attention too, and keeps it for the backward pass."""
    shape = job.student
    if shape.form.bias_tables == "none":
        return 0, 0
    keys = job.recipe.data.label_tokens + job.context_length
    return (
        job.contexts * job.context_length * shape.encoder_heads * job.word,
        job.labels * keys * shape.decoder_heads * job.word,
    )


def _encoder_token(job: Job) -> int:
    """Bytes of one position of one encoder layer."""
    shape = job.student
    numbers = (9 if job.fp16 else 8) * shape.width + 2 * shape.ffn  # fp16: the input of its clamp
    return numbers * job.word + 2 * shape.width * _dropout(job)


def _decoder_token(job: Job) -> int:
    shape = job.student
    return (12 * shape.width + 2 * shape.ffn) * job.word + 3 * shape.width * _dropout(job)


def _dropout(job: Job) -> int:
    """Bytes of a dropout mask's element; 0 where nothing is dropped."""
    return int(job.recipe.student.dropout is None or job.recipe.student.dropout > 0)
