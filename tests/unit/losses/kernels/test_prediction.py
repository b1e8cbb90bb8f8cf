"""Cross-entropy with labels and KL from the teacher: temperature, masks, fill values, float types."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.losses.kernels.prediction import prediction_sum, task_sum
from distill_engine.values import IGNORED_LABEL

LABELS = torch.tensor([[4, 2, IGNORED_LABEL], [IGNORED_LABEL, 1, 3]])
KEPT = LABELS != IGNORED_LABEL


def logits(seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed)) * scale


def parlai_prediction(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """PARITY: sum over tokens and vocabulary of p_t (log p_t - log p_s), temperature 1."""
    s, t = (x.double() - x.double().logsumexp(-1, keepdim=True) for x in (student, teacher))
    return (t.exp() * (t - s)).sum(-1)[KEPT].sum()


def test_task_is_the_summed_negative_log_probability():
    x = logits(0).double()
    expected = sum(
        float(x[b, t].logsumexp(0) - x[b, t, LABELS[b, t]]) for b in range(2) for t in range(3) if KEPT[b, t]
    )
    assert task_sum(logits(0), LABELS).item() == pytest.approx(expected, rel=1e-6)


def test_identical_inputs_diverge_by_nothing():
    student = logits(0).requires_grad_()
    value = prediction_sum(student, logits(0), LABELS, 1.0)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert student.grad.abs().max().item() < 1e-6


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 99), st.floats(0.1, 8.0))
def test_temperature_one_equals_parlai_and_is_never_negative(seed, scale):
    student, teacher = logits(seed, scale), logits(seed + 100, scale)
    value = prediction_sum(student, teacher, LABELS, 1.0).item()
    assert value == pytest.approx(parlai_prediction(student, teacher).item(), rel=1e-5, abs=1e-5)
    assert value >= -1e-5


@pytest.mark.parametrize("temperature", [0.5, 2.0, 7.0])
def test_temperature_divides_logits_and_multiplies_the_loss_by_its_square(temperature):
    student, teacher = logits(1).requires_grad_(), logits(2)
    value = prediction_sum(student, teacher, LABELS, temperature)
    expected = temperature**2 * parlai_prediction(student.detach() / temperature, teacher / temperature)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    # d/ds of T^2 KL(t/T || s/T) = T (softmax(s/T) - softmax(t/T))
    slope = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    assert torch.allclose(student.grad[KEPT], slope[KEPT], atol=1e-5)
    assert (student.grad[~KEPT] == 0).all()


def test_gradients_stay_comparable_at_high_temperature():
    """Why T^2: for large T the gradient tends to (s - t) / V of centred logits instead of vanishing."""
    student, teacher = logits(1).requires_grad_(), logits(2)
    prediction_sum(student, teacher, LABELS, 1000.0).backward()
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    assert torch.allclose(student.grad[KEPT], centred[KEPT] / 5, atol=1e-3)


def test_the_teacher_gets_no_gradient():
    teacher = logits(2).requires_grad_()
    prediction_sum(logits(1).requires_grad_(), teacher, LABELS, 1.0).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("dtype", "fill"), [(torch.float32, -1e20), (torch.bfloat16, -1e20), (torch.float16, -65504.0)]
)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_filled_column_counts_for_nothing(dtype, fill, temperature):
    """Both models hold "minus infinity" in START's column: as if the vocabulary lacked it."""
    student, teacher = (logits(seed).to(dtype) for seed in (1, 2))
    expected_kl = prediction_sum(student[..., 1:], teacher[..., 1:], LABELS, temperature)
    labels = LABELS.clone()
    labels[1, 1] = 2  # START itself is never a label
    expected_ce = task_sum(student[..., 1:], torch.where(labels == IGNORED_LABEL, labels, labels - 1))
    student[..., 0] = teacher[..., 0] = fill
    student.requires_grad_()
    divergence = prediction_sum(student, teacher, labels, temperature)
    task = task_sum(student, labels)
    assert divergence.dtype == task.dtype == torch.float32
    assert divergence.item() == pytest.approx(expected_kl.item(), rel=1e-5)
    assert task.item() == pytest.approx(expected_ce.item(), rel=1e-5)
    (divergence + task).backward()
    assert torch.isfinite(student.grad).all() and (student.grad[..., 0] == 0).all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 6e4])
@pytest.mark.parametrize("term", ["task", "prediction"])
def test_positions_without_a_label_change_neither_value_nor_gradient(bad, term):
    def run(spoil: bool) -> tuple[torch.Tensor, torch.Tensor]:
        student, teacher = logits(1), logits(2)
        if spoil:
            student[~KEPT] = teacher[~KEPT] = bad
        student.requires_grad_()
        value = task_sum(student, LABELS) if term == "task" else prediction_sum(student, teacher, LABELS, 2.0)
        value.backward()
        return value.detach(), student.grad

    (clean, clean_gradient), (spoilt, gradient) = run(False), run(True)
    assert torch.equal(clean, spoilt) and torch.equal(clean_gradient[KEPT], gradient[KEPT])
    assert (gradient[~KEPT] == 0).all()


def test_no_label_at_all_gives_zero_with_a_zero_gradient():
    student = logits(1).requires_grad_()
    nothing = torch.full_like(LABELS, IGNORED_LABEL)
    value = task_sum(student, nothing) + prediction_sum(student, logits(2), nothing, 1.0)
    value.backward()
    assert value.item() == 0 and (student.grad == 0).all()


def test_large_half_precision_logits_are_handled_in_float32():
    student = torch.tensor([[[60000.0, -60000.0]]], dtype=torch.float16)
    labels = torch.tensor([[1]])
    assert task_sum(student, labels).item() == 120000.0
    assert prediction_sum(student, -student, labels, 1.0).item() == 120000.0
