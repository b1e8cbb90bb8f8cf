"""Any divergence, from whole logits and from blocks of the vocabulary: values and gradients against float64."""

import os
from functools import partial

import pytest
import torch

from distill_engine.losses.divergences.forward_kl import FORWARD_KL, ForwardKL
from distill_engine.losses.divergences.reverse_kl import REVERSE_KL
from distill_engine.losses.kernels import prediction_blocks
from distill_engine.losses.kernels.dispatch import vocabulary_scores, vocabulary_sums
from distill_engine.losses.kernels.prediction import divergence_sum, prediction_sum
from distill_engine.values import OutputHead

VOCABULARY, IGNORED = 200, -100


def spelt_out(name, student, teacher, labels, temperature):
    """Float64 by autograd; [B, T, V], [B, T]."""
    log_s, log_t = (torch.log_softmax(one.double() / temperature, -1) for one in (student, teacher))
    p = (log_t if name == "forward" else log_s).exp()
    ratio = (log_t - log_s) if name == "forward" else (log_s - log_t)
    return (p * ratio).sum(-1)[labels != IGNORED].sum() * temperature**2


class Unhurried(ForwardKL):
    """Forward KL by the general way."""


CASES = {"reverse": REVERSE_KL, "forward": Unhurried()}


@pytest.fixture
def case():
    draw = torch.Generator().manual_seed(4)
    student, teacher = (2 * torch.randn(3, 5, VOCABULARY, generator=draw) for _ in range(2))
    labels = torch.randint(VOCABULARY, (3, 5), generator=draw)
    labels[1, 3:], labels[2] = IGNORED, IGNORED
    return student, teacher, labels


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", CASES)
def test_whole_logits(case, name, temperature):
    student, teacher, labels = case
    student[2], teacher[2] = torch.nan, torch.inf  # nothing is predicted there
    student.requires_grad_()
    found = divergence_sum(CASES[name], student, teacher, labels, temperature)
    (3.0 * found).backward()
    again = student.detach()[:2].double().requires_grad_()
    expected = spelt_out(name, again, teacher[:2], labels[:2], temperature)
    (3.0 * expected).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(student.grad[:2].double(), again.grad, rtol=1e-4, atol=1e-6)
    assert (student.grad[2] == 0).all() and (student.grad[:2][labels[:2] == IGNORED] == 0).all()


def test_forward_kl_keeps_its_own_way(case):
    for temperature in (1.0, 2.0):
        own = divergence_sum(FORWARD_KL, *case, temperature)
        assert torch.equal(own, prediction_sum(*case, temperature))
        assert own.item() == pytest.approx(divergence_sum(Unhurried(), *case, temperature).item(), rel=1e-5)


def heads(dtype=torch.float32):
    draw = torch.Generator().manual_seed(7)

    def head(width):
        states, table = torch.randn(3, 5, width, generator=draw), torch.randn(VOCABULARY, width, generator=draw)
        bias = torch.randn(VOCABULARY, generator=draw)
        return OutputHead(states.to(dtype), (table / 2).to(dtype), bias.to(dtype), masked_id=1)

    return head(8), head(12)


def logits(head):
    whole = (head.hidden.double() @ head.embedding.double().t()) + head.bias.double()
    return whole.index_fill(-1, torch.tensor([head.masked_id]), -1e20)


IMPLEMENTATIONS = [
    "chunked",
    pytest.param(
        "triton", marks=pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs an interpreter")
    ),
]


@pytest.mark.parametrize("blocks", ["one", "several"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_blocks(monkeypatch, case, name, implementation, temperature, blocks):
    if implementation == "triton":
        pytest.importorskip("triton")
    if blocks == "several":
        monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 1)  # 64 ids each
    labels = case[2].masked_fill(case[2] == 1, 2)
    student, teacher = heads()
    leaves = [tensor.requires_grad_() for tensor in (student.hidden, student.embedding, student.bias)]
    sums = partial(vocabulary_sums, implementation, student, teacher, labels, temperature, CASES[name])
    task, divergence, _ = sums()
    found = torch.autograd.grad(2 * task + 3 * divergence, leaves)
    shown, taught = logits(student), logits(teacher).detach()
    known = (torch.log_softmax(shown, -1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1))[labels != IGNORED]
    expected = spelt_out(name, shown, taught, labels, temperature)
    assert task.item() == pytest.approx(-known.sum().item(), rel=1e-5)
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(found, torch.autograd.grad(-2 * known.sum() + 3 * expected, leaves), strict=True):
        assert torch.allclose(one, other.to(one.dtype), rtol=1e-3, atol=1e-5)
    scores = vocabulary_scores(implementation, student, teacher, labels, temperature, CASES[name])
    assert scores.divergence.sum().item() == pytest.approx(expected.item(), rel=1e-5)
    assert (scores.divergence[labels == IGNORED] == 0).all()


def test_a_kept_graph_may_be_walked_twice(monkeypatch, case):
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 1)
    student, teacher = heads()
    student.hidden.requires_grad_()
    _, divergence, _ = vocabulary_sums("chunked", student, teacher, case[2], 1.0, REVERSE_KL)
    first, second = (torch.autograd.grad(divergence, student.hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().sum() > 0
