"""What benchmarks/kernels.py times: shapes, random inputs, eager formulas as one would write them, counted work.

Every case is a loss from random inputs; `run(implementation)` does one forward and one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from distill_engine.losses.kernels.dispatch import Implementation, attention_sums, hidden_sums, vocabulary_sums
from distill_engine.losses.kernels.prediction import task_and_prediction_sums
from distill_engine.values import IGNORED_LABEL, OutputHead, Projected, QueryKey

CLAMP = 65504.0
UPSTREAM = 1.0 / 1024


@dataclass(frozen=True)
class Work:
    """What one forward and backward pass cannot do without: 2 flops per multiplication and addition of the matrix
    products (those of a second forward in the backward pass not counted), and every input read and gradient written
    once."""

    gflop: float
    gigabytes: float


class Case(Protocol):
    """One loss at one shape."""

    name: str
    group: str

    def prepare(self, dtype: torch.dtype, device: torch.device) -> Runner:
        """Random inputs on the device."""
        ...


@dataclass(frozen=True)
class Runner:
    """A prepared case: the loss by implementation, the leaves that get gradients, the work."""

    loss: Callable[[str], Tensor]
    leaves: tuple[Tensor, ...]
    work: Work

    def run(self, implementation: str) -> None:
        """One forward and one backward pass; the gradients are thrown away."""
        (self.loss(implementation) * UPSTREAM).backward()
        for leaf in self.leaves:
            leaf.grad = None


# ---- attention -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionCase:
    """Score error of `layers` layer pairs; keys after three quarters of the context are padding in half the batch."""

    name: str
    batch: int
    heads: int
    student_size: int
    teacher_size: int
    queries: int
    keys: int
    layers: int
    causal: bool = False
    group: str = "attention"

    def prepare(self, dtype: torch.dtype, device: torch.device) -> Runner:
        """Queries and keys as models hand them over: [B, L, H, E] seen as [B, H, L, E]."""
        make = _Random(dtype, device)

        def one(size: int, grad: bool) -> QueryKey:
            query = make(self.batch, self.queries, self.heads, size, grad=grad)
            key = make(self.batch, self.keys, self.heads, size, grad=grad)
            return QueryKey(query.transpose(1, 2), key.transpose(1, 2), size**-0.5)

        students = [one(self.student_size, True) for _ in range(self.layers)]
        teachers = [one(self.teacher_size, False) for _ in range(self.layers)]
        key_mask = _padding(self.batch, self.keys, device)
        query_mask = key_mask if self.queries == self.keys else _padding(self.batch, self.queries, device)
        masks = (query_mask, None if self.causal else key_mask, self.causal)
        eager = _compiled_twin(_eager_attention)

        def loss(implementation: str) -> Tensor:
            if implementation in eager:
                pairs = zip(students, teachers, strict=True)
                return sum((eager[implementation](s, t, *masks) for s, t in pairs), torch.zeros((), device=device))
            chosen: Implementation = implementation  # type: ignore[assignment]
            return attention_sums(chosen, students, teachers, *masks, CLAMP).sum()

        leaves = tuple(t for s in students for t in (s.query._base, s.key._base) if t is not None)
        return Runner(loss, leaves, self._work(dtype))

    def _work(self, dtype: torch.dtype) -> Work:
        keys_seen = (self.queries + 1) / 2 if self.causal else self.keys
        pairs = self.layers * self.batch * self.heads * self.queries * keys_seen
        products = 2 * pairs * (self.student_size + self.teacher_size + 2 * self.student_size)
        vectors = self.layers * self.batch * self.heads * (self.queries + self.keys)
        numbers = vectors * (2 * self.student_size + self.teacher_size)
        return Work(products / 1e9, numbers * dtype.itemsize / 1e9)


def _eager_attention(
    student: QueryKey, teacher: QueryKey, query_mask: Tensor, key_mask: Tensor | None, causal: bool
) -> Tensor:
    scores = [qk.scale * qk.query @ qk.key.transpose(-1, -2) for qk in (student, teacher)]
    visible = query_mask[:, None, :, None]
    if key_mask is not None:
        visible = visible & key_mask[:, None, None, :]
    if causal:
        size = scores[0].shape[-1]
        visible = visible & torch.ones(size, size, dtype=torch.bool, device=visible.device).tril()
    squared = (scores[0].float() - scores[1].float()).square().clamp(max=CLAMP)
    return torch.where(visible, squared, 0.0).mean(dim=1).sum()


# ---- hidden states -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HiddenCase:
    """Hidden-state error of one layer, with or without a projection."""

    name: str
    batch: int
    length: int
    student_width: int
    teacher_width: int
    projected: bool = True
    group: str = "hidden"

    def prepare(self, dtype: torch.dtype, device: torch.device) -> Runner:
        """States, and a projection as it is initialised."""
        make = _Random(dtype, device)
        states = make(self.batch, self.length, self.student_width, grad=True)
        teacher = make(self.batch, self.length, self.teacher_width)
        mask = _padding(self.batch, self.length, device)
        leaves: tuple[Tensor, ...] = (states,)
        student: Tensor | Projected = states
        if self.projected:
            weight = (0.02 * make(self.teacher_width, self.student_width)).requires_grad_()
            bias = make(self.teacher_width, grad=True)
            student, leaves = Projected(states, weight, bias), (states, weight, bias)
        eager = _compiled_twin(_eager_hidden)

        def loss(implementation: str) -> Tensor:
            if implementation in eager:
                return eager[implementation](student, teacher, mask)
            chosen: Implementation = implementation  # type: ignore[assignment]
            return hidden_sums(chosen, [student], [teacher], mask, CLAMP).squeeze(0)

        return Runner(loss, leaves, self._work(dtype))

    def _work(self, dtype: torch.dtype) -> Work:
        tokens = self.batch * self.length
        weight = self.student_width * self.teacher_width * self.projected
        numbers = tokens * (2 * self.student_width + self.teacher_width) + 2 * weight
        return Work(3 * 2 * tokens * weight / 1e9, numbers * dtype.itemsize / 1e9)


def _eager_hidden(student: Tensor | Projected, teacher: Tensor, mask: Tensor) -> Tensor:
    whole = student.tensor() if isinstance(student, Projected) else student
    squared = functional.mse_loss(whole.float(), teacher.float(), reduction="none").clamp(max=CLAMP)
    return (squared * mask[..., None]).sum() / teacher.shape[-1]


# ---- prediction ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictionCase:
    """Cross-entropy and KL divergence over the vocabulary, from the decoders' outputs."""

    name: str
    batch: int
    labels: int
    student_width: int
    teacher_width: int
    vocabulary: int
    group: str = "prediction"

    def prepare(self, dtype: torch.dtype, device: torch.device) -> Runner:
        """Decoder outputs and output embeddings; a quarter of half the labels is padding."""
        make = _Random(dtype, device)

        def head(width: int, grad: bool) -> OutputHead:
            embedding = make(self.vocabulary, width) * width**-0.5
            return OutputHead(make(self.batch, self.labels, width, grad=grad), embedding.requires_grad_(grad), None, 1)

        student, teacher = head(self.student_width, True), head(self.teacher_width, False)
        labels = torch.randint(2, self.vocabulary, (self.batch, self.labels), generator=make.generator)
        labels = labels.to(device).masked_fill(~_padding(self.batch, self.labels, device), IGNORED_LABEL)
        eager = _compiled_twin(_eager_prediction)

        def loss(implementation: str) -> Tensor:
            if implementation in eager:
                return eager[implementation](student, teacher, labels)
            if implementation == "reference":
                task, prediction = task_and_prediction_sums(_logits(student), _logits(teacher), labels)
                return task + prediction
            chosen: Implementation = implementation  # type: ignore[assignment]
            task, prediction, _ = vocabulary_sums(chosen, student, teacher, labels, 1.0)
            return task + prediction

        return Runner(loss, (student.hidden, student.embedding), self._work(dtype))

    def _work(self, dtype: torch.dtype) -> Work:
        tokens = self.batch * self.labels
        products = 2 * tokens * self.vocabulary * (3 * self.student_width + self.teacher_width)
        widths = 2 * self.student_width + self.teacher_width
        return Work(products / 1e9, (tokens + self.vocabulary) * widths * dtype.itemsize / 1e9)


def _logits(head: OutputHead) -> Tensor:
    logits = functional.linear(head.hidden, head.embedding, head.bias)
    never = torch.arange(head.embedding.shape[0], device=logits.device) == head.masked_id
    return logits.masked_fill(never, max(-1e20, torch.finfo(logits.dtype).min))


def _eager_prediction(student: OutputHead, teacher: OutputHead, labels: Tensor) -> Tensor:
    student_logits, teacher_logits = _logits(student).float().flatten(0, 1), _logits(teacher).float().flatten(0, 1)
    labels = labels.flatten()
    task = functional.cross_entropy(student_logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
    log_student_probs = torch.log_softmax(student_logits, dim=-1)
    teacher_probs = torch.softmax(teacher_logits, dim=-1)
    divergence = functional.kl_div(log_student_probs, teacher_probs, reduction="none").sum(dim=-1)
    return task + (divergence * (labels != IGNORED_LABEL)).sum()


# ---- common --------------------------------------------------------------------------------------------------------


class _Random:
    """Seeded normal tensors of a dtype on a device."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self._dtype, self._device = dtype, device

    def __call__(self, *shape: int, grad: bool = False) -> Tensor:
        made = torch.randn(*shape, generator=self.generator).to(self._device, self._dtype)
        return made.requires_grad_(grad)


def _padding(batch: int, length: int, device: torch.device) -> Tensor:
    """[B, L] bool: every second example ends after three quarters."""
    ends = torch.tensor([length if n % 2 == 0 else max(1, length * 3 // 4) for n in range(batch)])
    return (torch.arange(length)[None] < ends[:, None]).to(device)


def _compiled_twin(function: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    return {"eager": function, "compiled": torch.compile(function, dynamic=False)}


CASES: tuple[Case, ...] = (
    AttentionCase("bb3b_encoder_self", 16, 32, 80, 80, 128, 128, layers=2),
    AttentionCase("bb3b_decoder_self", 16, 32, 80, 80, 128, 128, layers=9, causal=True),
    AttentionCase("bb3b_decoder_self_32", 16, 32, 80, 80, 32, 32, layers=9, causal=True),
    AttentionCase("bb3b_cross", 16, 32, 80, 80, 32, 128, layers=9),
    AttentionCase("bb364m_encoder_self", 16, 32, 40, 80, 128, 128, layers=2),
    AttentionCase("bb364m_cross", 16, 32, 40, 80, 128, 128, layers=9),
    AttentionCase("bart_large_encoder_self", 4, 16, 64, 64, 1024, 1024, layers=1),
    AttentionCase("bart_large_cross", 4, 16, 64, 64, 142, 1024, layers=6),
    HiddenCase("bb3b_hidden", 16, 128, 2560, 2560),
    HiddenCase("bb364m_hidden", 16, 128, 1280, 2560),
    HiddenCase("bart_large_hidden", 4, 1024, 1024, 1024, projected=False),
    HiddenCase("bart_large_hidden_narrow", 4, 1024, 512, 1024),
    PredictionCase("bb364m_prediction_32", 16, 32, 1280, 2560, 8008),
    PredictionCase("bb364m_prediction_128", 16, 128, 1280, 2560, 8008),
    PredictionCase("bart_large_prediction", 4, 142, 1024, 1024, 50265),
)
TINY: tuple[Case, ...] = (
    AttentionCase("tiny_attention", 2, 2, 8, 16, 5, 7, layers=2),
    HiddenCase("tiny_hidden", 2, 5, 8, 16),
    PredictionCase("tiny_prediction", 2, 5, 8, 16, 40),
)
