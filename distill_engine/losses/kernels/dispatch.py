"""Which implementation computes which loss.

    reference  PyTorch on whole matrices: what the others are compared with
    chunked    PyTorch on one block at a time, so that no full matrix ever exists; any device
    triton     the same in Triton kernels; CUDA devices

A recipe says `auto`, `fused` or `reference` for each group of terms. `fused` means triton on a CUDA device and
chunked on a CPU. The choice is made once, before the first step, and said in one line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from distill_engine.losses.divergences.forward_kl import FORWARD_KL
from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.losses.kernels import attention_mse_chunked, masked_mse_chunked
from distill_engine.losses.kernels.attention_mse import attention_mse_sum, pair_mask
from distill_engine.losses.kernels.masked_mse import masked_mse_sum
from distill_engine.losses.kernels.prediction_blocks import Pointwise, from_hidden, scores_from_hidden
from distill_engine.losses.kernels.prediction_chunked import TorchPointwise
from distill_engine.losses.quality import TokenScores
from distill_engine.values import OutputHead, Projected, QueryKey

Choice = Literal["auto", "fused", "reference"]
Implementation = Literal["reference", "chunked", "triton"]

# Fused prediction forms most logits twice, once more in the backward pass. Below this size of one [tokens, vocabulary]
# float32 matrix the memory that it saves is not worth the second product.
SMALL_LOGITS_BYTES = 64 * 2**20
OLDEST_CAPABILITY = (8, 0)
OLDEST_TRITON = (3, 6)  # the tests run the kernels with this one and with the newest
LARGEST_HEAD = 256
# What one block of the attention kernels needs for heads above 128; GPUs made for graphics have 99 KiB.
WIDE_HEADS_SHARED_BYTES = 131072


class KernelError(ValueError):
    """A fused kernel is asked for by name and cannot run here."""


@dataclass(frozen=True)
class Kernels:
    """The implementation of each group of terms.

    attention   encoder, decoder and cross attention scores
    hidden      encoder output, embeddings and hidden states, with their projections
    prediction  task cross-entropy and KL divergence
    """

    attention: Implementation = "reference"
    hidden: Implementation = "reference"
    prediction: Implementation = "reference"


REFERENCE = Kernels()


def choose(
    asked: Mapping[str, Choice], device: torch.device, logits_bytes: int, head_size: int = 0
) -> tuple[Kernels, str]:
    """The implementation for each group that `asked` names, and a line that says so.

    logits_bytes  size of the largest [tokens, vocabulary] float32 matrix of a micro-batch
    head_size     the larger one of both models' attention heads

    Raises KernelError if `fused` is asked for on a GPU where the Triton kernel cannot run.
    """
    chosen: dict[str, Implementation] = {}
    obstacles: dict[str, None] = {}
    for group in (f.name for f in fields(Kernels)):
        choice = asked.get(group, "auto")
        small = choice == "auto" and group == "prediction" and logits_bytes < SMALL_LOGITS_BYTES
        if choice == "reference" or small:
            chosen[group] = "reference"
            continue
        obstacle = _triton_obstacle(device, head_size if group == "attention" else 0)
        if obstacle and device.type == "cuda":
            _refuse_if_fused(group, choice, obstacle)
            obstacles[obstacle] = None
        chosen[group] = "chunked" if obstacle else "triton"
    listed = ", ".join(f"{group} {implementation}" for group, implementation in chosen.items())
    why = f" (no Triton: {'; '.join(obstacles)})" if obstacles else ""
    return Kernels(**chosen), f"loss kernels: {listed}{why}"


def _refuse_if_fused(group: str, choice: Choice, obstacle: str) -> None:
    if choice == "fused":
        raise KernelError(
            f"losses.kernels.{group} is fused, but {obstacle}. On a GPU fused losses are Triton kernels. "
            f"Correct that, or set losses.kernels.{group} to auto (the same memory in plain PyTorch) or reference."
        )


def _triton_obstacle(device: torch.device, head_size: int) -> str:
    """Why Triton kernels cannot run on the device; empty where they can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    triton = _triton_version()
    if triton is None:
        return "the package triton is not installed"
    if tuple(int(part) for part in re.findall(r"\d+", triton)[:2]) < OLDEST_TRITON:
        return f"the package triton is {triton}, older than {OLDEST_TRITON[0]}.{OLDEST_TRITON[1]}"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, below {OLDEST_CAPABILITY[0]}.0"
    shared = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    largest = LARGEST_HEAD if shared >= WIDE_HEADS_SHARED_BYTES else LARGEST_HEAD // 2
    if head_size > largest:
        return f"an attention head has {head_size} elements, and the kernel takes up to {largest} on this GPU"
    return ""


def _triton_version() -> str | None:
    for package in ("triton", "pytorch-triton"):  # PyTorch's nightly builds bring the second
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


# ---- the three groups ----------------------------------------------------------------------------------------------


def attention_sums(
    implementation: Implementation,
    students: Sequence[QueryKey],
    teachers: Sequence[QueryKey],
    query_mask: Tensor,
    key_mask: Tensor | None,
    causal: bool,
    clamp: float | None,
    divisor: int = 1,
) -> Tensor:
    """[layers] float32: for each layer pair the squared score error, summed over valid pairs, mean over heads, over the
    divisor.

    query_mask  [B, Q] bool     key_mask  [B, K] bool, None where every key counts
    causal      a query sees no later key
    """
    if implementation == "reference":
        mask = pair_mask(query_mask, key_mask, causal)
        sums = torch.stack([attention_mse_sum(s, t, mask, clamp) for s, t in zip(students, teachers, strict=True)])
        return sums if divisor == 1 else sums / divisor
    biased = any(one.bias is not None for one in (*students, *teachers))
    if implementation == "chunked" or biased:  # the Triton kernel knows no position biases
        sums = attention_mse_chunked.attention_mse_sums(students, teachers, query_mask, key_mask, causal, clamp)
        return sums if divisor == 1 else sums / divisor
    from distill_engine.losses.kernels import attention_mse_triton  # imports triton, which only GPU machines need

    return attention_mse_triton.attention_mse_sums(students, teachers, query_mask, key_mask, causal, clamp, divisor)


def hidden_sums(
    implementation: Implementation,
    students: Sequence[Tensor | Projected],
    teachers: Sequence[Tensor | Projected],
    mask: Tensor,
    clamp: float | None,
) -> Tensor:
    """[pairs] float32: squared error of one hidden vector per unmasked token, mean over the teacher's width. Pairs are
    of one shape, as layers of a stack are."""
    parts: list[tuple[Tensor, Tensor | None, Tensor | None]] = [
        (one.states, one.weight, one.bias) if isinstance(one, Projected) else (one, None, None) for one in students
    ]
    targets = [other for other in teachers if isinstance(other, Tensor)]  # a teacher's are never Projected
    if implementation == "triton" and parts:
        from distill_engine.losses.kernels import masked_mse_triton

        return masked_mse_triton.projected_mse_sums(parts, targets, mask, clamp)
    one_sum = _reference_hidden_sum if implementation == "reference" else masked_mse_chunked.projected_mse_sum
    return torch.stack([one_sum(*one, other, mask, clamp) for one, other in zip(parts, targets, strict=True)])


def _reference_hidden_sum(
    states: Tensor, weight: Tensor | None, bias: Tensor | None, teacher: Tensor, mask: Tensor, clamp: float | None
) -> Tensor:
    if weight is not None:  # a masked token may hold inf, which the weight's gradient must not see
        states = linear(states.masked_fill(~mask[..., None], 0.0), weight, bias)
    return masked_mse_sum(states, teacher, mask, clamp)


def vocabulary_sums(
    implementation: Implementation,
    student: OutputHead,
    teacher: OutputHead | None,
    labels: Tensor,
    temperature: float,
    measure: Divergence = FORWARD_KL,
) -> tuple[Tensor, Tensor, Tensor]:
    """Task sum [], divergence sum [] and hit counts, from the factors of the logits (see prediction_blocks)."""
    models = _factors(student, teacher)
    return from_hidden(_pointwise(implementation), models, labels, student.masked_id, temperature, measure)


def vocabulary_scores(
    implementation: Implementation,
    student: OutputHead,
    teacher: OutputHead | None,
    labels: Tensor,
    temperature: float,
    measure: Divergence = FORWARD_KL,
) -> TokenScores:
    """The same position by position, without gradients: losses, hits and divergences [B, T]."""
    models = _factors(student, teacher)
    return scores_from_hidden(_pointwise(implementation), models, labels, student.masked_id, temperature, measure)


def _factors(student: OutputHead, teacher: OutputHead | None) -> tuple[Tensor | None, ...]:
    teacher_factors = (None, None, None) if teacher is None else (teacher.hidden, teacher.embedding, teacher.bias)
    return student.hidden, student.embedding, student.bias, *teacher_factors


def _pointwise(implementation: Implementation) -> Pointwise:
    if implementation == "chunked":
        return TorchPointwise()
    from distill_engine.losses.kernels.prediction_divergence_triton import MeasuringPointwise

    return MeasuringPointwise()
