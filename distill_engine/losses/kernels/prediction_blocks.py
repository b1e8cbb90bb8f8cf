"""Task and prediction from hidden states: logits exist one block of the vocabulary at a time, never all of them.

    s = x W^T + b   t = y U^T + c                 student and teacher logits, in the dtype of each model
    task       = sum over label tokens of log sum exp(s) - s[label]
    prediction = T^2 * sum over label tokens and vocabulary of p_t (log p_t - log p_s)          p = softmax(. / T)

Cut along the vocabulary and not along the tokens: then the gradient of W is finished block by block, each row by one
matrix product over all tokens (float32 inside, rounded once), and only the [N, D] gradient of x is added up, which is
far smaller. Every part of the vocabulary leaves its maxima and sums of exponentials per token; they are put together
in float64. With m the maxima of one part, a = s - m_s and b = t - m_t:

    L_s = sum exp(a)   L_s,T = sum exp(a / T)   L_t,T = sum exp(b / T)   C = sum exp(b / T) (b - a) / T

    KL = C / L_t,T - log L_t,T + log L_s,T        C grows by L_t,T times the change of (m_s - m_t) / T as m changes

The backward pass makes the logits again, one more product per model: the gradient needs both upstream factors (loss
scale included) in float32 before it is rounded to the logits' dtype,

    ds = task' (p_s - onehot) + prediction' T (p_s,T - p_t,T)

and keeping the two halves apart would cost a second [V, D] gradient. The last block is still there and not made
again, so what fits into one block is never computed twice.

Another divergence than this KL needs a pass of its own (`prediction_divergence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill_engine.arithmetic.products import product
from distill_engine.losses.divergences.forward_kl import FORWARD_KL
from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.losses.kernels import prediction_tokens as tokenwise
from distill_engine.losses.kernels.half_products import add_product_
from distill_engine.losses.kernels.prediction_divergence import share
from distill_engine.losses.kernels.prediction_tokens import LogitBlock
from distill_engine.losses.quality import TokenScores
from distill_engine.values import IGNORED_LABEL

BLOCK_BYTES = 48 * 2**20  # logits of both models that exist at once
WIDTH_STEP = 64  # columns: rows of a block stay aligned for wide loads even where the vocabulary is odd


class Pointwise(Protocol):
    """The work between the matrix products. A protocol because torch and Triton both do it."""

    compact: bool  # tokens without a label are left out beforehand (on a GPU that would wait for the device)

    def sums(self, block: LogitBlock) -> Tensor:
        """[len(SUMS), parts, N] float32 of one block, whose logits stay as they are."""
        ...

    def gradient_(self, block: LogitBlock, moments: Tensor, task: Tensor, prediction: Tensor) -> None:
        """Overwrite the student's logits with the gradient; moments [len(MOMENTS), N], upstream factors []."""
        ...

    def values_and_slopes(self, block: LogitBlock, moments: Tensor, measure: Divergence) -> Tensor:
        """[2, parts, N] float32 of another divergence and one block, whose logits stay as they are
        (`prediction_divergence`)."""
        ...

    def measured_gradient_(
        self, block: LogitBlock, moments: Tensor, slopes: Tensor, task: Tensor, prediction: Tensor, measure: Divergence
    ) -> None:
        """`gradient_` of another divergence; slopes [N] are the G of all blocks."""
        ...


def from_hidden(
    pointwise: Pointwise,
    models: Sequence[Tensor | None],
    labels: Tensor,
    masked_id: int | None,
    temperature: float,
    measure: Divergence = FORWARD_KL,
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed cross-entropy, summed divergence and hits at label positions, [] [] [3] float32.

    models       hidden states [B, T, Ds], output embedding [V, Ds] and bias [V] (or None, added to the logits in their
                 dtype) of the student, the same of the teacher with Dt; all None without a teacher: no divergence
    labels       [B, T] int64, -100 ignored; a label outside the vocabulary makes the sum nan
    masked_id    id that neither model may predict, or None
    hits         label positions where the student's best token is the label, where it is the teacher's best, where
                 the teacher's best is the label (no gradient)

    Gradients reach the student's hidden states, embedding and bias. Raises ValueError for two vocabularies of
    different size, half a teacher, or a temperature that is not positive.
    """
    _check(models, temperature)
    options = _Options(masked_id, float(temperature), measure)
    task, prediction, hits = _FromHidden.apply(*models, labels, options, pointwise)
    return task, prediction, hits


@torch.no_grad()
def scores_from_hidden(
    pointwise: Pointwise,
    models: Sequence[Tensor | None],
    labels: Tensor,
    masked_id: int | None,
    temperature: float,
    measure: Divergence = FORWARD_KL,
) -> TokenScores:
    """What the same blocks tell of every token, without a gradient; labels [B, T]."""
    _check(models, temperature)
    rows = tokenwise.label_rows(labels) if pointwise.compact else None
    blocks = _Blocks(models, labels, rows, _Options(masked_id, float(temperature), measure))
    tokens, _ = blocks.tokens(pointwise)

    def spread(values: Tensor) -> Tensor:
        return tokenwise.spread_rows(values[:, None], labels[..., None], rows, values.dtype).squeeze(-1)

    loss, correct = spread(tokens.task), spread(tokens.correct)
    if not tokens.with_teacher:
        return TokenScores(loss, correct, None, None)
    return TokenScores(loss, correct, spread(tokens.agreeing), spread(tokens.divergence))


class _FromHidden(torch.autograd.Function):
    """Both sums over blocks of the vocabulary; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *models, labels, options, pointwise = arguments
        rows = tokenwise.label_rows(labels) if pointwise.compact else None
        blocks = _Blocks(models, labels, rows, options)
        tokens, slopes = blocks.tokens(pointwise)
        task, prediction, hits = tokens.totals()
        ctx.mark_non_differentiable(hits)
        ctx.save_for_backward(*models, labels, rows, tokens.moments, slopes)
        ctx.options, ctx.pointwise = options, pointwise
        ctx.made = blocks.made if any(ctx.needs_input_grad) else None
        return task, prediction, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, task: Tensor, prediction: Tensor, _hits: Tensor) -> tuple[Tensor | None, ...]:
        *models, labels, rows, moments, slopes = ctx.saved_tensors
        hidden, embedding, bias = models[:3]
        blocks = _Blocks(models, labels, rows, ctx.options, ctx.made)
        ctx.made = None  # overwritten now: another backward pass through this graph makes every block again
        clean = tokenwise.zero_where_ignored(blocks.student.hidden, blocks.labels, ctx.pointwise.compact)
        of_hidden = torch.zeros_like(clean, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        of_embedding = torch.empty_like(embedding) if ctx.needs_input_grad[1] else None
        of_bias = torch.empty_like(bias) if ctx.needs_input_grad[2] else None
        measure = ctx.options.measure
        weighed = prediction * share(measure, len(embedding))
        # the block that is there already comes first, also when it has to be made again: equal bits each time
        for ids in reversed(blocks.ids) if slopes is None else blocks.ids:
            block = blocks.make(ids)
            if slopes is None:
                ctx.pointwise.gradient_(block, moments, task, prediction)
            else:
                ctx.pointwise.measured_gradient_(block, moments, slopes, task, weighed, measure)
            if of_hidden is not None:
                add_product_(of_hidden, block.student, embedding[ids])
            if of_embedding is not None:
                product(block.student.t(), clean, out=of_embedding[ids])
            if of_bias is not None:
                of_bias[ids] = block.student.sum(dim=0, dtype=torch.float32)
        whole = None if of_hidden is None else tokenwise.spread_rows(of_hidden, hidden, rows, hidden.dtype)
        return whole, of_embedding, of_bias, *[None] * 6


# ---- blocks of the vocabulary ----------------------------------------------------------------------------------------


class _Options(NamedTuple):
    """What is the same for all blocks."""

    masked_id: int | None
    temperature: float
    measure: Divergence


class _Made(NamedTuple):
    """Buffers of blocks, one of each model, and the vocabulary ids whose logits are in them."""

    buffers: list[Tensor]
    ids: slice | None


@dataclass(frozen=True)
class _Model:
    """Hidden states of N tokens [N, D], output embedding [V, D], bias [V] or None."""

    hidden: Tensor
    embedding: Tensor
    bias: Tensor | None

    def bias_of(self, ids: slice) -> Tensor | None:
        return None if self.bias is None else self.bias[ids]


class _Blocks:
    """Makes blocks of logits in buffers that all blocks share: a block lives until the next one is made."""

    def __init__(
        self,
        models: Sequence[Tensor | None],
        labels: Tensor,
        rows: Tensor | None,
        options: _Options,
        made: _Made | None = None,
    ) -> None:
        """rows: of the tokens that take part, None for all. made: by an earlier use, not overwritten since."""
        self.models = [
            _Model(tokenwise.of_rows(hidden, rows), embedding, bias)
            for hidden, embedding, bias in (models[:3], models[3:])
            if hidden is not None and embedding is not None
        ]
        self.student, self.with_teacher = self.models[0], len(self.models) == 2
        self.labels = tokenwise.of_rows(labels[..., None], rows).squeeze(1)
        self.options = options
        bytes_per_id = labels.numel() * sum(model.hidden.element_size() for model in self.models)
        self.ids = vocabulary_blocks(len(self.student.embedding), bytes_per_id)
        width = -(-self.ids[0].stop // WIDTH_STEP) * WIDTH_STEP
        self.made = made or _Made([model.hidden.new_empty(len(model.hidden), width) for model in self.models], None)

    def tokens(self, pointwise: Pointwise) -> tuple[tokenwise.TokenValues, Tensor | None]:
        """Every token's numbers, from all blocks; of another divergence than forward KL its slopes [N] as well."""
        sums = torch.cat([pointwise.sums(self.make(ids)) for ids in self.ids], dim=1)
        temperature, measure = self.options.temperature, self.options.measure
        tokens = tokenwise.token_values(sums, self.labels, len(self.student.embedding), self.with_teacher, temperature)
        if measure is FORWARD_KL or not self.with_teacher:
            return tokens, None
        parts = [pointwise.values_and_slopes(self.make(ids), tokens.moments, measure) for ids in reversed(self.ids)]
        values, slopes = torch.cat(parts, dim=1).sum(dim=1)
        factor = temperature**2 * share(measure, len(self.student.embedding))
        values = values.double().masked_fill(self.labels == IGNORED_LABEL, 0.0) * factor
        return replace(tokens, divergence=values), slopes

    def make(self, ids: slice) -> LogitBlock:
        """The block of these vocabulary ids."""
        logits = [buffer[:, : ids.stop - ids.start] for buffer in self.made.buffers]
        if ids != self.made.ids:
            for model, out in zip(self.models, logits, strict=True):
                product(model.hidden, model.embedding[ids].t(), out=out)
        self.made = self.made._replace(ids=ids)
        masked = None if self.options.masked_id is None else self.options.masked_id - ids.start
        return LogitBlock(
            student=logits[0],
            teacher=logits[1] if self.with_teacher else None,
            student_bias=self.student.bias_of(ids),
            teacher_bias=self.models[1].bias_of(ids) if self.with_teacher else None,
            first=ids.start,
            masked=masked if masked is not None and 0 <= masked < ids.stop - ids.start else None,
            labels=self.labels,
            temperature=self.options.temperature,
        )


def vocabulary_blocks(vocabulary: int, bytes_per_id: int) -> list[slice]:
    """Ids 0 ... vocabulary - 1 in equal blocks of up to BLOCK_BYTES or WIDTH_STEP ids (the last: fewer)."""
    most = BLOCK_BYTES // (max(1, bytes_per_id) * WIDTH_STEP)
    blocks = -(-vocabulary // (max(1, most) * WIDTH_STEP))
    width = -(-vocabulary // (blocks * WIDTH_STEP)) * WIDTH_STEP
    return [slice(first, min(first + width, vocabulary)) for first in range(0, vocabulary, width)]


def _check(models: Sequence[Tensor | None], temperature: float) -> None:
    embedding, teacher_hidden, teacher_embedding = models[1], models[3], models[4]
    if not temperature > 0:
        raise ValueError(f"losses.temperature is {temperature}: logits are divided by it. Use a number above 0.")
    if (teacher_hidden is None) != (teacher_embedding is None):
        missing = "hidden states" if teacher_hidden is None else "output embedding"
        raise ValueError(f"prediction from hidden states: no {missing} of the teacher. Give both of its parts or none.")
    if embedding is not None and teacher_embedding is not None and len(teacher_embedding) != len(embedding):
        raise ValueError(
            f"prediction: the student has {len(embedding)} vocabulary entries, the teacher {len(teacher_embedding)}. "
            "They are compared id by id; use one vocabulary, or losses.weights.prediction: 0."
        )
