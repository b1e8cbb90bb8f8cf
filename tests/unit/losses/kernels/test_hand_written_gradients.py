"""The losses form their gradients by hand; here they meet the same formulas left to autograd, with upstream factors."""

import math

import pytest
import torch
from torch.nn import functional

from distill_engine.losses.kernels.attention_mse import attention_mse_sum
from distill_engine.losses.kernels.masked_mse import masked_mse_sum, zero_unless_
from distill_engine.losses.kernels.prediction import prediction_sum, task_and_prediction_sums, task_sum
from distill_engine.values import IGNORED_LABEL, QueryKey

DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
CLAMP = 0.8  # bites about a third of the elements


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(value: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(value * -2.5, inputs)


def assert_same(ours: tuple, plain: tuple, tolerance: float) -> None:
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.allclose(mine.float(), theirs.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("clamp", [None, CLAMP])
def test_hidden_states(dtype, tolerance, clamp):
    student, teacher = (random(3, 4, 5, seed=seed, dtype=dtype) for seed in (0, 1))
    student.requires_grad_()
    mask = random(3, 4, seed=2) > -0.5
    squared = (student.float() - teacher.float()).square()
    plain = (squared if clamp is None else squared.clamp(max=clamp)).mean(-1).masked_fill(~mask, 0.0).sum()
    ours = masked_mse_sum(student, teacher, mask, clamp)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    assert_same(gradients(ours, student), gradients(plain, student), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("clamp", [None, CLAMP])
def test_attention_scores_of_heads_that_lie_apart_in_memory(dtype, tolerance, clamp):
    def side(size: int, seed: int) -> QueryKey:  # transposed views, as models make them
        query, key = (random(2, n, 3, size, seed=seed + n, dtype=dtype).transpose(1, 2) for n in (4, 6))
        return QueryKey(query.requires_grad_(), key.requires_grad_(), size**-0.5)

    student, teacher = side(2, 0), side(5, 50)
    mask = random(2, 4, 6, seed=9) > -0.5
    scores = [(x.query.float() @ x.key.float().transpose(-1, -2)) * x.scale for x in (student, teacher)]
    squared = (scores[0] - scores[1].detach()).square()
    bounded = squared if clamp is None else squared.clamp(max=clamp)
    plain = bounded.masked_fill(~mask[:, None], 0.0).sum() / 3
    ours = attention_mse_sum(student, teacher, mask, clamp)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-4)
    assert_same(gradients(ours, student.query, student.key), gradients(plain, student.query, student.key), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_both_vocabulary_sums_at_once_are_the_two_alone(dtype, tolerance, bad):
    student, teacher = (random(2, 3, 7, seed=seed, dtype=dtype) for seed in (0, 1))
    labels = torch.tensor([[4, 2, IGNORED_LABEL], [IGNORED_LABEL, 1, 6]])
    kept = labels != IGNORED_LABEL
    student[~kept] = teacher[~kept] = bad
    student.requires_grad_()
    task, prediction = task_and_prediction_sums(student, teacher, labels)
    plain_task = functional.cross_entropy(student[kept].float(), labels[kept], reduction="sum")
    plain_prediction = functional.kl_div(
        student[kept].float().log_softmax(-1), teacher[kept].float().log_softmax(-1), log_target=True, reduction="sum"
    )
    assert task.item() == pytest.approx(plain_task.item(), rel=1e-5)
    assert prediction.item() == pytest.approx(plain_prediction.item(), rel=1e-5)
    both = gradients(task + 6.4 * prediction, student)
    assert_same(both, gradients(plain_task + 6.4 * plain_prediction, student), tolerance)
    assert (both[0][~kept] == 0).all()
    alone = task_sum(student[kept][None], labels[kept][None]) + 6.4 * prediction_sum(student, teacher, labels, 1.0)
    assert alone.item() == pytest.approx((task + 6.4 * prediction).item(), rel=1e-5)


def test_zero_unless_writes_zeros_whatever_was_there():
    values = torch.tensor([[1.5, -2.5, math.inf], [math.nan, -0.0, 7.0]])
    keep = torch.tensor([[True], [False]])
    assert zero_unless_(values, keep).tolist() == [[1.5, -2.5, math.inf], [0.0, 0.0, 0.0]]
