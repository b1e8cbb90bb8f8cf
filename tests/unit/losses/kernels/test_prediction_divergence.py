"""Any divergence, from whole logits and from blocks of the vocabulary: values and gradients against float64."""

import math
import os
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from pydantic import ValidationError

from distill_engine.losses.config import LossesSection
from distill_engine.losses.divergences.forward_kl import FORWARD_KL, ForwardKL
from distill_engine.losses.divergences.jensen_shannon import JENSEN_SHANNON
from distill_engine.losses.divergences.logit_mse import LOGIT_MSE
from distill_engine.losses.divergences.reverse_kl import REVERSE_KL
from distill_engine.losses.divergences.total_variation import TOTAL_VARIATION
from distill_engine.losses.kernels import prediction_blocks
from distill_engine.losses.kernels.dispatch import vocabulary_scores, vocabulary_sums
from distill_engine.losses.kernels.prediction import divergence_sum, prediction_sum
from distill_engine.values import OutputHead

VOCABULARY, IGNORED = 200, -100


def spelt_out(name, student, teacher, labels, temperature):
    """Float64 by autograd; [B, T, V], [B, T]."""
    if name == "logit_mse":
        return (student - teacher).double().square().mean(-1)[labels != IGNORED].sum()
    log_s, log_t = (torch.log_softmax(one.double() / temperature, -1) for one in (student, teacher))
    s, t = log_s.exp(), log_t.exp()
    if name == "total_variation":
        entries = (s - t).abs() / 2
    elif name.startswith("jensen"):
        beta = CASES[name].number
        log_m = torch.where(s + t == 0, 0.0, (beta * t + (1 - beta) * s)).clamp(min=1e-300).log()
        entries = beta * t * (log_t - log_m) + (1 - beta) * s * (log_s - log_m)
    else:
        entries = t * (log_t - log_s) if name == "forward" else s * (log_s - log_t)
    return entries.sum(-1)[labels != IGNORED].sum() * temperature**2


class Unhurried(ForwardKL):
    """Forward KL by the general way."""


CASES = {
    "reverse": REVERSE_KL,
    "forward": Unhurried(),
    "jensen": JENSEN_SHANNON,
    "jensen_0.9": JENSEN_SHANNON.configured({"beta": 0.9}),
    "total_variation": TOTAL_VARIATION,
    "logit_mse": LOGIT_MSE,
}


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


@pytest.mark.parametrize(("temperature", "blocks"), [(1.0, "one"), (2.5, "several")])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_blocks(monkeypatch, case, name, implementation, temperature, blocks):
    if implementation == "triton":
        pytest.importorskip("triton")
    if blocks == "several":
        monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 1)  # 64 ids each
    labels = case[2].masked_fill(case[2] == 1, 2)
    student, teacher = heads()
    if implementation == "triton":  # interpreted: milliseconds for each token and block
        labels = labels[1:2]
        student, teacher = (replace(one, hidden=one.hidden[1:2].clone()) for one in (student, teacher))
    leaves = [tensor.requires_grad_() for tensor in (student.hidden, student.embedding, student.bias)]
    sums = partial(vocabulary_sums, implementation, student, teacher, labels, temperature, CASES[name])
    task, divergence, _ = sums()
    found = torch.autograd.grad(2 * task + 3 * divergence, leaves)
    student_logits, teacher_logits = logits(student), logits(teacher).detach()
    log_s = torch.log_softmax(student_logits, -1)
    known = log_s.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)[labels != IGNORED]
    expected = spelt_out(name, student_logits, teacher_logits, labels, temperature)
    assert task.item() == pytest.approx(-known.sum().item(), rel=1e-5)
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(found, torch.autograd.grad(-2 * known.sum() + 3 * expected, leaves), strict=True):
        assert torch.allclose(one, other.to(one.dtype), rtol=1e-3, atol=1e-5)
    scores = vocabulary_scores(implementation, student, teacher, labels, temperature, CASES[name])
    assert scores.divergence.sum().item() == pytest.approx(expected.item(), rel=1e-5)
    assert (scores.divergence[labels == IGNORED] == 0).all()


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.float32, torch.float16)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_dtypes_have_two_numbers_for_never(case, dtypes, implementation):
    if implementation == "triton":
        pytest.importorskip("triton")
    student, teacher = heads(dtypes[0])[0], heads(dtypes[1])[1]
    labels = case[2].masked_fill(case[2] == 1, 2)
    found = vocabulary_sums(implementation, student, teacher, labels, 2.0, LOGIT_MSE)[1]
    assert found.item() == pytest.approx(spelt_out("logit_mse", logits(student), logits(teacher), labels, 2.0).item(),
                                         rel=1e-2)  # fmt: skip


# ---- what each divergence is, of two tokens' distributions in float64 ----------------------------------------------


def of_logits(measure, student, teacher, temperature=1.0):
    """[tokens] float64; student and teacher [tokens, V]."""
    if measure.of == "logits":
        return measure.value_and_slope(student / temperature, teacher / temperature)[0].mean(-1)
    operands = (torch.log_softmax(one / temperature, -1) for one in (student, teacher))
    return measure.value_and_slope(*operands)[0].sum(-1)


@pytest.fixture
def pair():
    draw = torch.Generator().manual_seed(11)
    return [3 * torch.randn(4, 50, generator=draw, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_equal_is_zero_and_unequal_is_positive(pair, name):
    student, teacher = pair
    assert of_logits(CASES[name], student, student).abs().max() < 1e-12
    assert of_logits(CASES[name], student, teacher).min() > 0


@pytest.mark.parametrize("name", CASES)
def test_the_slope_is_the_derivative(pair, name):
    right = pair[1] if name == "logit_mse" else torch.log_softmax(pair[1], -1)
    left = (pair[0] if name == "logit_mse" else torch.log_softmax(pair[0], -1)).requires_grad_()
    value, slope = CASES[name].value_and_slope(left, right)
    (by_autograd,) = torch.autograd.grad(value.sum(), left)
    assert torch.allclose(slope, by_autograd, rtol=1e-9, atol=1e-12)


def test_what_is_symmetric_and_bounded(pair):
    for name, most in (("jensen", math.log(2)), ("total_variation", 1.0), ("logit_mse", math.inf)):
        one, other = of_logits(CASES[name], *pair), of_logits(CASES[name], *reversed(pair))
        assert torch.allclose(one, other, rtol=1e-12) and one.max() <= most
    one, other = of_logits(CASES["jensen_0.9"], *pair), of_logits(CASES["jensen_0.9"], *reversed(pair))
    assert not torch.allclose(one, other, rtol=1e-2)


def test_the_limits_of_beta(pair):
    small = 1e-7
    forward, reverse = of_logits(FORWARD_KL, *pair), of_logits(REVERSE_KL, *pair)
    at_zero = of_logits(JENSEN_SHANNON.configured({"beta": small}), *pair) / small
    at_one = of_logits(JENSEN_SHANNON.configured({"beta": 1 - small}), *pair) / small
    assert torch.allclose(at_zero, forward, rtol=1e-3) and torch.allclose(at_one, reverse, rtol=1e-3)
    assert JENSEN_SHANNON.configured({"beta": 0}) is FORWARD_KL and JENSEN_SHANNON.configured({"beta": 1}) is REVERSE_KL
    assert JENSEN_SHANNON.configured({}).number == 0.5


def test_hot_forward_kl_is_half_the_logits_squared_error(pair):
    """Up to what all logits of a token share (Hinton et al. 2015)."""
    student, teacher = (one - one.mean(-1, keepdim=True) for one in pair)
    hot = of_logits(FORWARD_KL, student, teacher, temperature=1e4) * 1e8
    assert torch.allclose(hot, of_logits(LOGIT_MSE, student, teacher) / 2, rtol=1e-3)


def test_the_recipe_checks_options():
    chosen = LossesSection(divergence="jensen_shannon", divergence_options={"beta": 0.3})
    assert chosen.measure.number == 0.3 and LossesSection().measure is FORWARD_KL
    for name, options, said in (
        ("jensen_shannon", {"beta": 1.5}, "fit jensen_shannon, whose options are: beta. beta: Input should be less"),
        ("forward_kl", {"beta": 0.5}, "whose options are: none. beta: Extra inputs"),
        ("jensen", {"beta": 0.5}, "Did you mean jensen_shannon?"),
    ):
        with pytest.raises(ValidationError, match=re.escape(said)) as caught:
            LossesSection(divergence=name, divergence_options=options)
        assert caught.value.error_count() == 1


def test_a_kept_graph_may_be_walked_twice(monkeypatch, case):
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 1)
    student, teacher = heads()
    student.hidden.requires_grad_()
    _, divergence, _ = vocabulary_sums("chunked", student, teacher, case[2], 1.0, REVERSE_KL)
    first, second = (torch.autograd.grad(divergence, student.hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().sum() > 0
