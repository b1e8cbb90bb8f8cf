"""Bytes that cross links in an optimizer step, and how long they take.

Ring collectives: of a whole of n bytes over r ranks every rank receives n (r - 1) / r, an all-reduce twice that; ranks
stand in the ring node by node, so as much enters each node. DeepSpeed's ZeRO-2 reduces the gradients of every
micro-batch, and by all-reduce unless `use_multi_rank_bucket_allreduce` is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from launcher.hardware import Gpu
from launcher.job import FULL, Job, zero

LINK_EFFICIENCY = 0.75
# Of one hop of a ring, as NCCL's own cost model has it (its large-message protocol, NVLink and network).
HOP_WITHIN, HOP_BETWEEN = 3.4e-6, 10e-6
_BUCKET = 500_000_000  # DeepSpeed's default of both bucket sizes, in elements
_MODULES_BESIDE_LAYERS = 4  # two embeddings, positions, output
# Of the host's Python around one module that ZeRO-3 gathers: benchmarks/hooks.py, on the CPU that its result names.
HOOK_SECONDS = 2.0e-3


@dataclass(frozen=True)
class Traffic:
    """Of one optimizer step.

    within       bytes into each GPU from its own node
    between      bytes into each node from others
    host         bytes between each GPU and its host's memory
    collectives  how often all ranks of the group meet
    """

    within: float
    between: float
    host: float = 0.0
    collectives: int = 0


def traffic(job: Job) -> dict[str, Traffic]:
    """Who moves what."""
    trained, share = job.trained * job.word, job.trained * job.word / job.ranks
    config = zero(job.student_ds)
    reduced = _buckets(job, int(config.get("reduce_bucket_size", _BUCKET))) * job.accumulation
    spread = _buckets(job, int(config.get("allgather_bucket_size", _BUCKET)))
    twice = 2 if config.get("use_multi_rank_bucket_allreduce", True) or not config.get("reduce_scatter", True) else 1
    host = share if job.offloaded else 0.0
    return {
        "teacher gathering": _teacher(job),
        "gradient reduction": _ring(
            trained * twice * job.accumulation, job.ranks, job, host * job.accumulation, reduced
        ),
        "student weights": _ring(trained, job.ranks, job, host, spread),
    }


def _teacher(job: Job) -> Traffic:
    if job.loaded is None or job.placement == "replica":
        return Traffic(0.0, 0.0)
    whole = float((sum(one.parameters for one in job.all_loaded) - job.shared) * job.word * job.teacher_passes)
    host = whole / job.ranks if job.placement == "offload" else 0.0
    return _ring(whole, job.sharers, job, host, _gathered_modules(job) * job.teacher_passes)


def _gathered_modules(job: Job) -> int:
    """Of a teacher pass under ZeRO-3: whole layers (the DeepSpeed JSON's leaf modules) and what stands beside them; of
    several teachers all of theirs. A shared encoder's are not gathered."""
    encoders = 0 if job.shared else sum(one.encoder_layers for one in job.all_loaded)
    return encoders + sum(one.decoder_layers + _MODULES_BESIDE_LAYERS for one in job.all_loaded)


def hook_seconds(job: Job) -> float:
    """Of the host in DeepSpeed's hooks of the teacher's passes of an optimizer step; a copy has none."""
    if job.loaded is None or job.placement == "replica":
        return 0.0
    return _gathered_modules(job) * job.teacher_passes * HOOK_SECONDS


def _ring(whole: float, members: int, job: Job, host: float, collectives: int) -> Traffic:
    """Members: neighbouring ranks, all of them or those of one node."""
    moved = whole * (members - 1) / members
    here = min(job.ranks_per_node, members)
    return Traffic(
        within=moved if here > 1 else 0.0,
        between=moved if members > here else 0.0,
        host=host,
        collectives=collectives if members > 1 else 0,
    )


def _buckets(job: Job, size: int) -> int:
    return ceil(job.trained / size)


def seconds(who: str, one: Traffic, job: Job, gpu: Gpu) -> float:
    """Of one part of the traffic: the slowest of its links, and the hops of its collectives."""
    links = (
        one.within / (gpu.link * LINK_EFFICIENCY),
        one.between / (gpu.network * min(job.ranks, job.ranks_per_node) * LINK_EFFICIENCY),
        one.host / (gpu.host * LINK_EFFICIENCY),
    )
    return max(links) + one.collectives * _latency(who, one, job)


def _latency(who: str, one: Traffic, job: Job) -> float:
    """Of one collective: a gather goes around the ring; an all-reduce climbs a tree of nodes and comes back."""
    here = min(job.ranks, job.ranks_per_node)
    nodes = job.nodes if one.between else 1
    if who == "gradient reduction":
        return 2 * ((here - 1) * HOP_WITHIN + log2(nodes) * HOP_BETWEEN)
    return nodes * (here - 1) * HOP_WITHIN + (nodes - 1) * HOP_BETWEEN


def overlaps(job: Job) -> bool:
    """Whether gradients are reduced while the backward pass goes on."""
    return bool(zero(job.student_ds).get("overlap_comm", False))


def update_bytes(job: Job) -> float:
    """What an optimizer step reads and writes: weights, gradient, and the moments, in 32 bits."""
    return job.trained / job.ranks * 7 * FULL
