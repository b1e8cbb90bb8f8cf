"""Squared error at unmasked tokens: the clamp, the mask and the float types."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.losses.kernels.masked_mse import masked_mse_sum

CLAMP = 65504.0
BAD = [math.inf, -math.inf, math.nan, 6e4]


def one_token(*values: float, dtype=torch.float32) -> torch.Tensor:
    return torch.tensor([[values]], dtype=dtype)


ONE = torch.tensor([[True]])


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 9), st.sampled_from([None, 0.5, 3.0]))
def test_equals_a_plain_formula(plain, examples, length, width, seed, clamp):
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(examples, length, width, generator=draw) for _ in range(2))
    mask = torch.rand(examples, length, generator=draw) < 0.6
    rows = [tuple(pair) for pair in mask.nonzero().tolist()]
    expected = plain.mse(student, teacher, rows, math.inf if clamp is None else clamp)
    assert masked_mse_sum(student, teacher, mask, clamp).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_the_clamp_works_on_elements_before_the_mean():
    # 300^2 = 90000 in one of four elements: clamped before the mean 65504 / 4, after it 90000 / 4 (below the clamp)
    student = one_token(300.0, 0.0, 0.0, 0.0)
    assert masked_mse_sum(student, torch.zeros(1, 1, 4), ONE, CLAMP).item() == CLAMP / 4
    assert masked_mse_sum(student, torch.zeros(1, 1, 4), ONE, None).item() == 90000 / 4


def test_clamped_elements_have_no_gradient_and_their_neighbours_keep_theirs():
    student = one_token(300.0, 2.0, -300.0, -1.0).requires_grad_()
    masked_mse_sum(student, torch.zeros(1, 1, 4), ONE, CLAMP).backward()
    assert student.grad.flatten().tolist() == [0.0, 1.0, 0.0, -0.5]


def test_without_a_clamp_large_differences_keep_their_gradient():
    student = one_token(300.0, 2.0).requires_grad_()
    masked_mse_sum(student, torch.zeros(1, 1, 2), ONE, None).backward()
    assert student.grad.flatten().tolist() == [300.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_squared_in_float32(dtype):
    student = one_token(300.0, 0.0, dtype=dtype).requires_grad_()
    value = masked_mse_sum(student, one_token(0.0, 0.0, dtype=dtype), ONE, None)
    assert (value.dtype, value.item()) == (torch.float32, 45000.0)  # 90000 is inf in fp16
    value.backward()
    assert student.grad.dtype == dtype
    assert student.grad.flatten().tolist() == [300.0, 0.0]
    # a difference beyond fp16's largest number
    assert masked_mse_sum(one_token(6e4, dtype=dtype), one_token(-6e4, dtype=dtype), ONE, CLAMP).item() == CLAMP


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("clamp", [CLAMP, None])
def test_masked_positions_change_neither_value_nor_gradient(bad, side, clamp):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    clean = student.clone().requires_grad_()
    expected = masked_mse_sum(clean, teacher, mask, clamp)
    expected.backward()
    {"student": student, "teacher": teacher}[side][~mask] = bad
    student.requires_grad_()
    value = masked_mse_sum(student, teacher, mask, clamp)
    value.backward()
    assert torch.equal(value, expected)
    assert torch.equal(student.grad, clean.grad)
    assert (student.grad[~mask] == 0).all()


def test_inputs_are_left_as_they_are():
    student, teacher = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    masked_mse_sum(student, teacher, torch.zeros(1, 2, dtype=torch.bool), CLAMP)
    assert (student == 1).all() and (teacher == 0).all()


def test_nothing_unmasked_gives_zero_with_a_zero_gradient():
    student = torch.randn(2, 3, 4).requires_grad_()
    value = masked_mse_sum(student, torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool), CLAMP)
    value.backward()
    assert value.item() == 0 and (student.grad == 0).all()
