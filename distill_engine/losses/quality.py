"""How good the student's predictions are, teacher-forced: sums per task, to be divided after all ranks are added up.

Names and meanings are ParlAI's: `ppl` is exp(summed token loss / label tokens) of one task, `token_em` counts
examples whose every label token is predicted, `teacher_acc` (here teacher_agreement) counts label positions where
student and teacher predict the same token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from distill_engine.values import IGNORED_LABEL, Batch

Average = Literal["macro", "micro"]
COLUMNS = ("loss_sum", "tokens", "correct", "agreeing", "exact", "examples")
# of the teacher itself; the last: squares of how much less an example's summed loss is for the student
TEACHER_COLUMNS = ("teacher_loss_sum", "teacher_correct", "gain_squares")


class TokenScores(NamedTuple):
    """How every label position was predicted, [B, T] each; 0 and False where there is no label.

    loss        floating point, -log p(label)
    correct     bool, the label is the student's best token
    agreeing    bool, the student's best token is the teacher's; None without one
    divergence  floating point, temperature^2 KL(teacher || student); None where it was not asked for or nobody teaches
    """

    loss: Tensor
    correct: Tensor
    agreeing: Tensor | None
    divergence: Tensor | None


@torch.no_grad()
def token_scores(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> TokenScores:
    """From whole logits [B, T, V]; no divergence."""
    loss = functional.cross_entropy(
        student_logits.float().transpose(1, 2), labels, ignore_index=IGNORED_LABEL, reduction="none"
    )
    return TokenScores(loss, *_hits(student_logits, teacher_logits, labels), None)


@torch.no_grad()
def quality_sums(scores: TokenScores, batch: Batch, tasks: int) -> Tensor:
    """[tasks, len(COLUMNS)] float64 sums of one micro-batch. Dummy examples (no label at all) count nowhere.

    Without a teacher `agreeing` stays 0.
    """
    mask = batch.label_mask  # [B, T]
    real = mask.any(dim=1)
    correct = scores.correct.sum(dim=1)
    none = torch.zeros_like(correct)
    per_example = torch.stack(
        [
            scores.loss.double().sum(dim=1),
            mask.sum(dim=1).double(),
            correct.double(),
            (none if scores.agreeing is None else scores.agreeing.sum(dim=1)).double(),
            (real & (correct == mask.sum(dim=1))).double(),
            real.double(),
        ],
        dim=1,
    )  # [B, columns]
    sums = torch.zeros(tasks, len(COLUMNS), dtype=torch.float64, device=per_example.device)
    return sums.index_add_(0, batch.task_ids, per_example)


@torch.no_grad()
def teacher_sums(student: TokenScores, teacher: TokenScores, batch: Batch, tasks: int) -> Tensor:
    """[tasks, len(TEACHER_COLUMNS)] float64 sums of one micro-batch."""
    loss = teacher.loss.double().sum(dim=1)
    gain = loss - student.loss.double().sum(dim=1)
    per_example = torch.stack([loss, teacher.correct.sum(dim=1).double(), gain.square()], dim=1)
    sums = torch.zeros(tasks, len(TEACHER_COLUMNS), dtype=torch.float64, device=per_example.device)
    return sums.index_add_(0, batch.task_ids, per_example)


@torch.no_grad()
def accuracy_counts(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Label positions that the student predicts, and where it agrees with the teacher (None without one); []."""
    correct, agreeing = _hits(student_logits, teacher_logits, labels)
    return correct.sum(), None if agreeing is None else agreeing.sum()


def _hits(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """[B, T] bool each: predicted the label; predicted what the teacher predicts."""
    predicted = student_logits.argmax(dim=-1)
    correct = predicted == labels  # a label of -100 is no prediction
    if teacher_logits is None:
        return correct, None
    return correct, (predicted == teacher_logits.argmax(dim=-1)) & (labels != IGNORED_LABEL)


def quality_values(
    sums: Tensor, labels: Sequence[str], with_teacher: bool, average: Average = "macro"
) -> dict[str, float]:
    """Named values from globally summed [tasks, columns]: COLUMNS, perhaps followed by TEACHER_COLUMNS.

    Per task as `<label>/<name>`; without a label the unweighted mean over tasks (macro, as ParlAI), or with `micro`
    the value of all tasks' tokens (or examples) together; `ppl_micro` is always that. A task without label tokens is
    left out; no token at all gives no value. ppl saturates at infinity.
    """
    per_task = {
        label: _of_task(_columns(row), with_teacher)
        for label, row in zip(labels, sums.tolist(), strict=True)
        if row[COLUMNS.index("tokens")] > 0
    }
    if not per_task:
        return {}
    rows = list(per_task.values())
    pooled = _of_task(_columns(sums.sum(dim=0).tolist()), with_teacher)
    macro = {name: sum(row[name] for row in rows) / len(rows) for name in pooled}
    values = dict(pooled if average == "micro" else macro)
    values["ppl_micro"] = pooled["ppl"]
    return values | {f"{label}/{name}": value for label, row in per_task.items() for name, value in row.items()}


def _columns(row: Sequence[float]) -> dict[str, float]:
    return dict(zip((*COLUMNS, *TEACHER_COLUMNS), row, strict=False))


def _of_task(sums: dict[str, float], with_teacher: bool) -> dict[str, float]:
    loss = sums["loss_sum"] / sums["tokens"]
    values = {
        "loss": loss,
        "ppl": _exp(loss),
        "token_accuracy": sums["correct"] / sums["tokens"],
        "token_exact_match": sums["exact"] / sums["examples"],
    }
    if with_teacher:
        values["teacher_agreement"] = sums["agreeing"] / sums["tokens"]
    if with_teacher and "teacher_loss_sum" in sums:
        values["teacher_ppl"] = _exp(sums["teacher_loss_sum"] / sums["tokens"])
        values["teacher_token_accuracy"] = sums["teacher_correct"] / sums["tokens"]
    return values


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
