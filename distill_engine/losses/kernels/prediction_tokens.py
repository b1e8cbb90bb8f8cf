"""From sums over parts of the vocabulary to numbers of single tokens: the formulas of `prediction_blocks`, float64; and
what all that reads a block of logits in torch has in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_engine.values import IGNORED_LABEL

# rows of `Pointwise.sums`, each [parts of the vocabulary, N] float32; argmax is a vocabulary id
SUMS = (
    "student_max", "student_sum", "student_tempered", "student_argmax", "label_logit",
    "teacher_max", "teacher_tempered", "teacher_argmax", "cross",
)  # fmt: skip
# rows of the per-token numbers that the gradient needs, [N] float32 each; the last three are 1 / L of the formulas
MOMENTS = ("student_max", "teacher_max", "student", "student_tempered", "teacher_tempered")


@dataclass(frozen=True)
class LogitBlock:
    """Logits of all N tokens for the vocabulary ids first ... first + W - 1, as the matrix product left them.

    student, teacher            [N, W] without bias, the left part of equally wide rows (the rest of a row is free,
                                a row is a multiple of prediction_blocks.WIDTH_STEP); teacher None: task alone
    student_bias, teacher_bias  [W] or None
    masked                      column that is never predicted (`masked_value`), or None
    labels                      [N] vocabulary ids, -100 ignored
    """

    student: Tensor
    teacher: Tensor | None
    student_bias: Tensor | None
    teacher_bias: Tensor | None
    first: int
    masked: int | None
    labels: Tensor
    temperature: float


@dataclass(frozen=True)
class TokenValues:
    """What is known of N tokens, [N] each; those without a label have 0 and False everywhere.

    task, divergence  float64: -log p(label); temperature^2 KL(teacher || student)
    correct           bool, the student's best id is the label
    agreeing          bool, it is the teacher's best
    teacher_correct   bool, the teacher's best is the label
    moments           [len(MOMENTS), N] float32, also of tokens without a label
    with_teacher      without one divergence, agreeing and teacher_correct are 0 and False
    """

    task: Tensor
    divergence: Tensor
    correct: Tensor
    agreeing: Tensor
    teacher_correct: Tensor
    moments: Tensor
    with_teacher: bool

    def totals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Task sum [], prediction sum [], and how many are correct, agreeing and teacher_correct [3], float32."""
        hits = torch.stack([self.correct.sum(), self.agreeing.sum(), self.teacher_correct.sum()])
        return self.task.sum().float(), self.divergence.sum().float(), hits.float()


def token_values(sums: Tensor, labels: Tensor, vocabulary: int, with_teacher: bool, temperature: float) -> TokenValues:
    """sums [len(SUMS), parts, N], labels [N] with -100 ignored; a label outside the vocabulary has a task of nan."""
    part = dict(zip(SUMS, sums.double(), strict=True))
    kept = labels != IGNORED_LABEL
    student_max, student_id, below_student = _maximum(part, "student")
    student = (part["student_sum"] * below_student.exp()).sum(dim=0)
    known = (labels >= 0) & (labels < vocabulary)
    label_logit = part["label_logit"].sum(dim=0).masked_fill(~known, torch.nan)
    task = (student.log() + student_max - label_logit).masked_fill(~kept, 0.0)
    correct = student_id == labels
    if not with_teacher:
        none, no = torch.zeros_like(student), torch.zeros_like(kept)
        moments = torch.stack([student_max, none, 1 / student, none, none])
        return TokenValues(task, none, correct, no, no, moments.float(), with_teacher=False)
    teacher_max, teacher_id, below_teacher = _maximum(part, "teacher")
    weight = (below_teacher / temperature).exp()
    student_tempered = (part["student_tempered"] * (below_student / temperature).exp()).sum(dim=0)
    teacher_tempered = (part["teacher_tempered"] * weight).sum(dim=0)
    shift = (below_teacher - below_student) / temperature
    cross = (weight * (part["cross"] + part["teacher_tempered"] * shift)).sum(dim=0)
    divergence = (cross / teacher_tempered - teacher_tempered.log() + student_tempered.log()).masked_fill(~kept, 0.0)
    agreeing, teacher_correct = (student_id == teacher_id) & kept, teacher_id == labels
    moments = torch.stack([student_max, teacher_max, 1 / student, 1 / student_tempered, 1 / teacher_tempered])
    return TokenValues(task, divergence * temperature**2, correct, agreeing, teacher_correct, moments.float(), True)


def _maximum(part: dict[str, Tensor], model: str) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logit [N], its first id [N], and how far the largest of each part lies below it, [parts, N]."""
    largest, where = part[f"{model}_max"].max(dim=0)
    ids = part[f"{model}_argmax"].gather(0, where[None]).squeeze(0)
    return largest, ids.long(), part[f"{model}_max"] - largest


# ---- blocks of logits in torch -------------------------------------------------------------------------------------

TILE_BYTES = 2**20  # float32 logits of one model that are handled at once


def masked_value(dtype: torch.dtype) -> float:
    """ParlAI's minus infinity: -1e20, or the lowest finite number where that does not fit (fp16)."""
    return max(-1e20, torch.finfo(dtype).min)


def finished(logits: Tensor, bias: Tensor | None, masked: int | None) -> Tensor:
    """Float32 logits as the model gives them: bias added, then the masked column set, both in the model's dtype.

    Without a bias float32 logits are not copied: the masked column is then set in the block itself.
    """
    whole = logits if bias is None else (logits + bias).to(logits.dtype)
    if masked is not None:
        whole[:, masked] = masked_value(logits.dtype)
    return whole.float()


def row_tiles(logits: Tensor) -> Iterator[slice]:
    """Rows of [N, W], a few at a time, so that the passes over them meet in the processor's cache."""
    step = max(1, TILE_BYTES // (4 * logits.shape[1]))
    return (slice(first, first + step) for first in range(0, len(logits), step))


# ---- tokens that take part ---------------------------------------------------------------------------------------


def label_rows(labels: Tensor) -> Tensor | None:
    """Places of the label tokens among all tokens, None when all are."""
    rows = (labels.flatten() != IGNORED_LABEL).nonzero().squeeze(1)
    return None if len(rows) == labels.numel() else rows


def of_rows(values: Tensor, rows: Tensor | None) -> Tensor:
    """[B, T, D] -> [N, D], the chosen rows."""
    flat = values.reshape(values.shape[:-1].numel(), values.shape[-1])
    return flat if rows is None else flat[rows]


def spread_rows(chosen: Tensor, whole: Tensor, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[N, D] of the chosen rows -> the shape of `whole` in another dtype, zeros elsewhere."""
    rounded = chosen.to(dtype)
    if rows is None:
        return rounded.view(whole.shape)
    return rounded.new_zeros(whole.shape[:-1].numel(), whole.shape[-1]).index_copy_(0, rows, rounded).view(whole.shape)


def zero_where_ignored(hidden: Tensor, labels: Tensor, compact: bool) -> Tensor:
    """Hidden states whose ignored rows cannot spoil a product: 0 * inf is nan."""
    return hidden if compact else hidden.masked_fill((labels == IGNORED_LABEL)[:, None], 0.0)
