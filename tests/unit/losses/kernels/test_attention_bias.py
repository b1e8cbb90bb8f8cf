"""Scores with a position bias (T5): it is part of the score, and its gradient reaches the table that it comes from."""

import pytest
import torch

import distill_engine.losses.kernels.attention_mse_chunked as chunked
from distill_engine.losses.kernels.attention_mse import pair_mask
from distill_engine.losses.kernels.dispatch import attention_sums
from distill_engine.values import QueryKey

B, H, Q, K = 3, 4, 6, 6


def side(draw, size, scale, biased=True):
    query, key = (torch.randn(B, H, length, size, generator=draw).requires_grad_() for length in (Q, K))
    bias = torch.randn(H, Q, K, generator=draw).requires_grad_() if biased else None
    return QueryKey(query, key, scale, bias)


def by_formula(student, teacher, mask, clamp):
    """[] float64 with gradients to the student: mean over heads of clamped squared differences of pairs that count."""

    def scores(one):
        found = one.query.double() @ one.key.double().transpose(2, 3) * one.scale
        return found if one.bias is None else found + one.bias.double()

    squared = (scores(student) - scores(teacher).detach()).square()
    if clamp is not None:
        squared = squared.clamp(max=clamp)
    return squared.masked_fill(~mask[:, None], 0.0).sum() / H


@pytest.mark.parametrize("implementation", ["reference", "chunked", "triton"])  # the last falls back
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("clamp", [None, 3.0])
def test_values_and_gradients_are_those_of_the_formula(implementation, causal, biased, clamp, monkeypatch):
    monkeypatch.setattr(chunked, "block_limits", lambda _: (20, 2))  # a few heads of a few examples
    monkeypatch.setattr(chunked, "BLOCK_QUERIES", 4)
    draw = torch.Generator().manual_seed(int(causal))
    student, teacher = side(draw, 5, 1.0, biased[0]), side(draw, 3, 0.5, biased[1])
    rows = torch.arange(Q) < torch.tensor([[6], [3], [0]])
    columns = None if causal else torch.arange(K) < torch.tensor([[4], [6], [2]])
    mask = pair_mask(rows, columns, causal)
    leaves = [t for t in (student.query, student.key, student.bias) if t is not None]
    wanted = by_formula(student, teacher, mask, clamp)
    gradients = torch.autograd.grad(wanted * 7.0, leaves)
    with torch.no_grad():  # rows that do not count may hold anything
        student.query[1, :, 3:], teacher.query[2] = float("nan"), float("inf")
    found = attention_sums(implementation, [student], [teacher], rows, columns, causal, clamp)
    assert found.shape == (1,) and torch.allclose(found[0].double(), wanted, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(found.sum() * 7.0, leaves), gradients, strict=True):
        assert torch.allclose(ours, theirs.float(), rtol=1e-4, atol=1e-4)
