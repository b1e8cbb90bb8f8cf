"""Squared error of attention scores: one product for two models, the clamp, the pairs that count."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.losses.kernels.attention_mse import attention_mse_sum, pair_mask
from distill_engine.values import QueryKey

CLAMP = 65504.0


def query_key(draw, examples, heads, queries, keys, size) -> QueryKey:
    shape = (examples, heads)
    query, key = torch.randn(*shape, queries, size, generator=draw), torch.randn(*shape, keys, size, generator=draw)
    return QueryKey(query, key, size**-0.5)


def scores(pair: QueryKey) -> torch.Tensor:
    return torch.einsum("bhqe,bhke->bhqk", pair.query.double(), pair.key.double()) * pair.scale


def single(query: float, key: float, dtype=torch.float32) -> QueryKey:
    """One example, head, query and key of head size 1."""
    return QueryKey(torch.full((1, 1, 1, 1), query, dtype=dtype), torch.full((1, 1, 1, 1), key, dtype=dtype), 1.0)


ONE = torch.ones(1, 1, 1, dtype=torch.bool)
SIZES = st.integers(1, 5)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 4), SIZES, SIZES, SIZES, SIZES, st.integers(0, 9))
def test_the_sum_equals_that_of_two_separate_products(examples, heads, queries, keys, size_s, size_t, seed):
    draw = torch.Generator().manual_seed(seed)
    student = query_key(draw, examples, heads, queries, keys, size_s)
    teacher = query_key(draw, examples, heads, queries, keys, size_t)
    difference = scores(student) - scores(teacher)
    mask = torch.rand(examples, queries, keys, generator=draw) < 0.7
    for clamp in (None, 0.8):
        squared = difference.square() if clamp is None else difference.square().clamp(max=clamp)
        expected = squared.mean(dim=1)[mask].sum().item()
        assert attention_mse_sum(student, teacher, mask, clamp).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_mask_for_one_example_serves_all():
    draw = torch.Generator().manual_seed(0)
    student, teacher = (query_key(draw, 3, 2, 4, 4, 2) for _ in range(2))
    mask = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    whole = attention_mse_sum(student, teacher, mask.expand(3, 4, 4), None)
    assert torch.equal(attention_mse_sum(student, teacher, mask, None), whole)


def test_each_pair_and_head_is_clamped_before_the_mean_over_heads():
    student = QueryKey(torch.tensor([300.0, 1.0]).view(1, 2, 1, 1), torch.ones(1, 2, 1, 1), 1.0)
    student.query.requires_grad_()
    teacher = QueryKey(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1), 1.0)
    value = attention_mse_sum(student, teacher, ONE, CLAMP)
    assert value.item() == (CLAMP + 1) / 2
    value.backward()
    assert student.query.grad.flatten().tolist() == [0.0, 1.0]  # the clamped head learns nothing
    assert attention_mse_sum(student, teacher, ONE, None).item() == 90001 / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_do_not_overflow(dtype):
    student, teacher = single(512.0, 512.0, dtype), single(0.0, 0.0, dtype)  # score 262144: inf in fp16
    value = attention_mse_sum(student, teacher, ONE, None)
    assert (value.dtype, value.item()) == (torch.float32, 262144.0**2)
    assert attention_mse_sum(student, teacher, ONE, CLAMP).item() == CLAMP


def test_own_scale_of_each_model():
    student, teacher = single(2.0, 3.0), single(2.0, 3.0)
    teacher = QueryKey(teacher.query, teacher.key, 0.5)
    assert attention_mse_sum(student, teacher, ONE, None).item() == pytest.approx((6 - 3) ** 2)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_masked_pairs_may_hold_anything(bad):
    draw = torch.Generator().manual_seed(0)
    student, teacher = (query_key(draw, 2, 2, 4, 5, 3) for _ in range(2))
    query_mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    key_mask = torch.tensor([[True, True, True, True, False], [True, True, False, False, False]])
    mask = pair_mask(query_mask, key_mask, causal=False)
    expected = attention_mse_sum(student, teacher, mask, CLAMP)
    teacher.query[~query_mask[:, None].expand(2, 2, 4)] = bad
    student.key[~key_mask[:, None].expand(2, 2, 5)] = bad
    assert attention_mse_sum(student, teacher, mask, CLAMP).item() == pytest.approx(expected.item(), rel=1e-6)


def test_masked_pairs_give_no_gradient():
    draw = torch.Generator().manual_seed(0)
    student, teacher = (query_key(draw, 1, 2, 4, 4, 3) for _ in range(2))
    student.query.requires_grad_()
    student.key.requires_grad_()
    mask = pair_mask(torch.tensor([[True, True, False, False]]), None, causal=True)
    attention_mse_sum(student, teacher, mask, CLAMP).backward()
    for gradient in (student.query.grad, student.key.grad):
        assert (gradient[:, :, 2:] == 0).all() and (gradient[:, :, :2] != 0).all()


def test_other_head_counts_are_refused():
    draw = torch.Generator().manual_seed(0)
    student, teacher = query_key(draw, 1, 2, 3, 3, 4), query_key(draw, 1, 4, 3, 3, 2)
    with pytest.raises(ValueError, match=r"the student has 2 heads, the teacher 4\. .*equal heads or weight 0"):
        attention_mse_sum(student, teacher, torch.ones(1, 3, 3, dtype=torch.bool), None)


def test_pair_masks():
    queries = torch.tensor([[True, True, False]])
    keys = torch.tensor([[True, False]])
    assert pair_mask(queries, keys, causal=False).int().tolist() == [[[1, 0], [1, 0], [0, 0]]]
    assert pair_mask(queries, None, causal=True).int().tolist() == [[[1, 0, 0], [1, 1, 0], [0, 0, 0]]]
    assert pair_mask(queries, None, causal=False).shape == (1, 3, 1)  # broadcasts over keys
