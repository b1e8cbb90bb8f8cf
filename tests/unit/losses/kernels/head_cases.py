"""Cases and checks for the losses from hidden states, shared by the tests of their implementations.

Each check takes `run`, the function under test, which all implementations have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from rounding import product_error
from torch import Tensor

from distill_engine.losses.kernels.prediction_blocks import Pointwise, from_hidden
from distill_engine.losses.quality import accuracy_counts
from distill_engine.values import IGNORED_LABEL

Run = Callable[..., tuple[Tensor, Tensor, Tensor]]
UPSTREAM = (3.7, -0.9)
# of the largest gradient; half precision: logits and their gradient are rounded once, as in the model
TOLERANCE = {torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def through(pointwise: Pointwise) -> Run:
    """Sums and hits with this pointwise work, by a Case's names."""

    def run(
        student_hidden, student_embedding, student_bias, teacher_hidden, teacher_embedding, teacher_bias, labels,
        masked_id, temperature,
    ):  # fmt: skip
        models = (student_hidden, student_embedding, student_bias, teacher_hidden, teacher_embedding, teacher_bias)
        return from_hidden(pointwise, models, labels, masked_id, temperature)

    return run


@dataclass(frozen=True)
class Case:
    """Arguments of the function, by its names."""

    student_hidden: Tensor
    student_embedding: Tensor
    student_bias: Tensor | None
    teacher_hidden: Tensor | None
    teacher_embedding: Tensor | None
    teacher_bias: Tensor | None
    labels: Tensor
    masked_id: int | None = None
    temperature: float = 1.0

    @property
    def kept(self) -> Tensor:
        return self.labels != IGNORED_LABEL

    @property
    def trained(self) -> list[Tensor]:
        every = (self.student_hidden, self.student_embedding, self.student_bias)
        return [tensor for tensor in every if tensor is not None]

    def sums(self, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        return run(**vars(self))


def case(
    dtype=torch.float32, size=(2, 5), vocabulary=301, widths=(16, 24), bias=True, ignored=3, seed=0, device="cpu",
    **options,
) -> Case:  # fmt: skip
    """Random models whose predictions are neither certain nor flat; the last `ignored` tokens have no label."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)

    models = [
        (random(*size, width), random(vocabulary, width, scale=1.5 * width**-0.5), random(vocabulary) if bias else None)
        for width in widths
    ]
    for tensor in models[0]:
        if tensor is not None:
            tensor.requires_grad_()
    masked = options.get("masked_id")
    labels = torch.randint(2, vocabulary, size, generator=generator)
    assert masked is None or masked < 2, "the masked id is never a label"
    if ignored:
        labels.view(-1)[-ignored:] = IGNORED_LABEL
    return Case(*models[0], *models[1], labels.to(device), **options)


# ---- the formulas a second time, in float64 ------------------------------------------------------------------------


def logits(hidden: Tensor, embedding: Tensor, bias: Tensor | None, masked_id: int | None) -> Tensor:
    """What a model would show: rounded to its dtype after the product and after the bias, then float64."""
    dtype = hidden.dtype
    made = (hidden.detach().double() @ embedding.detach().double().T).to(dtype)
    if bias is not None:
        made = (made.double() + bias.detach().double()).to(dtype)
    if masked_id is not None:
        made[..., masked_id] = max(-1e20, torch.finfo(dtype).min)
    return made.double()


def plain(one: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Task and prediction of the label tokens, and the student's logits they come from (with gradient), float64."""
    student = logits(*(getattr(one, f"student_{part}") for part in ("hidden", "embedding", "bias")), one.masked_id)
    student.requires_grad_()
    rows, labels = student[one.kept], one.labels[one.kept]
    task = (rows.logsumexp(-1) - rows.gather(-1, labels[:, None]).squeeze(1)).sum()
    if one.teacher_hidden is None:
        return task, torch.zeros_like(task), student
    factors = (getattr(one, f"teacher_{part}") for part in ("hidden", "embedding", "bias"))
    teacher_logits = logits(*factors, one.masked_id)
    log_s = (rows / one.temperature).log_softmax(-1)
    log_t = (teacher_logits[one.kept] / one.temperature).log_softmax(-1)
    return task, one.temperature**2 * (log_t.exp() * (log_t - log_s)).sum(), student


def plain_gradients(one: Case, upstream=UPSTREAM) -> list[Tensor]:
    """Of hidden states, embedding and bias; float64."""
    task, prediction, student = plain(one)
    (slope,) = torch.autograd.grad(task * upstream[0] + prediction * upstream[1], student)
    if one.masked_id is not None:
        slope[..., one.masked_id] = 0.0
    flat = slope.flatten(0, 1)
    hidden, embedding = one.student_hidden.detach(), one.student_embedding.detach()
    clean = torch.where(one.kept[..., None], hidden, 0.0).flatten(0, 1).double()
    found = [slope @ embedding.double(), flat.T @ clean, flat.sum(0)]
    return found[: len(one.trained)]


def gradients(one: Case, run: Run, upstream=UPSTREAM) -> list[Tensor]:
    task, prediction, _ = one.sums(run)
    return list(torch.autograd.grad(task * upstream[0] + prediction * upstream[1], one.trained))


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as part of the largest value expected (of 0.1, if the case has next to nothing to learn)."""
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp(min=0.1)).item()


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_float64(run: Run, one: Case, upstream=UPSTREAM) -> None:
    """Both sums and all gradients."""
    depths = (*one.student_hidden.shape[-1:], *one.student_embedding.shape, one.labels.numel())
    tolerance = TOLERANCE[one.student_hidden.dtype] + product_error(one.student_hidden.dtype, max(depths))
    task, prediction, _ = one.sums(run)
    expected = plain(one)
    assert task.dtype == prediction.dtype == torch.float32 and task.shape == prediction.shape == ()
    assert task.item() == pytest.approx(expected[0].item(), rel=tolerance, abs=2e-6)
    assert prediction.item() == pytest.approx(expected[1].item(), rel=2 * tolerance, abs=2e-6)
    found = gradients(one, run, upstream)
    for mine, theirs, trained in zip(found, plain_gradients(one, upstream), one.trained, strict=True):
        assert mine.dtype == trained.dtype and mine.shape == trained.shape
        assert error(mine, theirs) < tolerance


def check_no_worse_than_eager(run: Run, eager: Callable[..., tuple[Tensor, Tensor]], size=(4, 16)) -> None:
    """Float32: errors against float64 stay below twice those of the whole-matrix formulas."""
    one = case(size=size, vocabulary=2003, widths=(48, 64), bias=False)
    both = (one.student_hidden @ one.student_embedding.T, one.teacher_hidden @ one.teacher_embedding.T)
    eagers = eager(*both, one.labels)
    exact = plain(one)[:2]
    for mine, theirs, expected in zip(one.sums(run), eagers, exact, strict=False):
        bound = max(2 * abs(theirs.item() - expected.item()), 2e-7 * abs(expected.item()))
        assert abs(mine.item() - expected.item()) <= bound
    total = eagers[0] * UPSTREAM[0] + eagers[1] * UPSTREAM[1]
    eager_gradients = torch.autograd.grad(total, one.trained)
    for mine, theirs, expected in zip(gradients(one, run), eager_gradients, plain_gradients(one), strict=True):
        assert error(mine, expected) <= 2 * error(theirs, expected) + 1e-7


def check_ignored_rows(run: Run, bad: float, **options) -> None:
    """What stands at positions without a label changes no bit, and gets a gradient of exactly 0."""
    clean = case(masked_id=1, **options)
    hidden, teacher_hidden = clean.student_hidden.detach().clone(), clean.teacher_hidden.clone()
    hidden[~clean.kept] = teacher_hidden[~clean.kept] = bad
    spoilt = replace(clean, student_hidden=hidden.requires_grad_(), teacher_hidden=teacher_hidden)
    for mine, theirs in zip(spoilt.sums(run), clean.sums(run), strict=True):
        assert torch.equal(mine, theirs)
    found = gradients(spoilt, run)
    assert (found[0][~clean.kept] == 0).all()
    for mine, theirs in zip(found, gradients(clean, run), strict=True):
        assert torch.equal(mine, theirs)


def check_nothing_to_learn(run: Run, size: tuple[int, int], ignored: int) -> None:
    one = case(size=size, ignored=ignored)
    assert [value.tolist() for value in one.sums(run)] == [0.0, 0.0, [0.0, 0.0, 0.0]]
    assert all((gradient == 0).all() for gradient in gradients(one, run))


def check_task_alone(run: Run, **options) -> None:
    one = replace(case(masked_id=0, **options), teacher_hidden=None, teacher_embedding=None, teacher_bias=None)
    check_float64(run, one)
    assert one.sums(run)[1].item() == 0.0 and one.sums(run)[2][1:].tolist() == [0.0, 0.0]


def check_loss_scale(run: Run, size=(10, 20)) -> None:
    """Fp16, a mean over 200 tokens: unscaled, most of the logits' gradients lose precision; two factors."""
    one = case(torch.float16, size=size, vocabulary=8008, widths=(8, 12), ignored=0, temperature=2.0)
    upstream = (65536.0 / 200, 65536.0 * 6 / 200)
    found = gradients(one, run, upstream)
    for mine, theirs in zip(found, plain_gradients(one, upstream), strict=True):
        assert torch.isfinite(mine).all()
        assert ((mine.double() - theirs).norm() / theirs.norm()).item() < 2e-3
    task, _, student = plain(one)
    (slope,) = torch.autograd.grad(task / 200, student)
    assert (slope.abs() < torch.finfo(torch.float16).smallest_normal).float().mean() > 0.9  # the danger is real here


def check_hits(run: Run, vocabulary: int, size=(6, 16)) -> None:
    """As the whole logits say, the first of equal logits winning: small whole numbers make many equals."""
    one = case(torch.float16, size, vocabulary, widths=(3, 4), bias=False, masked_id=1)
    whole = {
        name: tensor.detach().round() for name, tensor in vars(one).items() if name.endswith(("hidden", "embedding"))
    }
    one = replace(one, **whole)
    student = logits(one.student_hidden, one.student_embedding, None, 1)
    teacher_logits = logits(one.teacher_hidden, one.teacher_embedding, None, 1)
    best = student.argmax(-1)
    labels = torch.where(one.kept & (torch.arange(size[1]) % 2 == 0), best, one.labels)
    assert (student == student.amax(-1, keepdim=True)).sum(-1).gt(1).any()
    correct, agreeing = accuracy_counts(student, teacher_logits, labels)
    teachers, _ = accuracy_counts(teacher_logits, None, labels)
    expected = [correct.item(), agreeing.item(), teachers.item()]
    _, _, hits = replace(one, labels=labels).sums(run)
    assert hits.tolist() == expected and correct > 0 and not hits.requires_grad


def check_repeats(run: Run, **options) -> None:
    """Equal inputs give equal bits, and a kept graph may be walked twice."""
    one = case(**options)
    task, prediction, _ = one.sums(run)
    total = task * UPSTREAM[0] + prediction * UPSTREAM[1]
    first = torch.autograd.grad(total, one.trained, retain_graph=True)
    again = torch.autograd.grad(total, one.trained)
    other = gradients(one, run)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def check_label_outside(run: Run) -> None:
    """Never a plausible number: the sum is nan."""
    one = case(vocabulary=67)
    labels = one.labels.clone()
    labels[0, 0] = 67
    assert math.isnan(replace(one, labels=labels).sums(run)[0].item())
