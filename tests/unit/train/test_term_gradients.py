"""Gradient norms per term with real tiny models: right, repeatable, and nothing of the training is touched."""

import math

import pytest
import tiny_models
import torch

from distill_engine.losses.kernels.dispatch import Kernels
from distill_engine.telemetry.metrics import describe
from distill_engine.train.term_gradients import TermGradients

CPU = torch.device("cpu")
FUSED = Kernels(attention="chunked", hidden="chunked", prediction="chunked")


def one_rank(tensor):
    return tensor.clone()


def teacher_features_of(world, goal):
    with torch.no_grad():
        return world.teacher(world.batch, goal.teacher_request())[0]


def measured(world, goal=None, scale=1.0, seed=0):
    gradients = TermGradients(goal or world.goal, world.module, 1, lambda: scale, CPU)
    teacher_features = teacher_features_of(world, goal or world.goal)
    torch.manual_seed(seed)
    gradients.measure(0, world.batch, teacher_features, world.divisor, one_rank)
    return gradients.read()


def own_gradients(world, term):
    """One term's gradient by an ordinary backward pass through a fresh graph."""
    torch.manual_seed(0)
    student_features, _ = world.module(world.batch, world.goal.student_request())
    values = world.goal.weighted(world.goal.terms(student_features, world.teacher_features, world.batch), world.divisor)
    world.module.zero_grad(set_to_none=True)
    values[term].backward()
    found = [p.grad for p in world.module.model.parameters() if p.grad is not None]
    world.module.zero_grad(set_to_none=True)
    return torch.cat([gradient.flatten().double() for gradient in found])


def test_each_norm_is_that_of_the_terms_own_backward_pass(world):
    named = measured(world)
    for term in world.goal.term_weights:
        expected = own_gradients(world, term).norm().item()
        assert expected > 0
        assert named[f"train/gradient_norm/{term}"] == pytest.approx(expected, rel=1e-5), term


def test_shares_add_up_to_one_and_names_are_registered(world):
    named = measured(world)
    assert sum(value for name, value in named.items() if "share" in name) == pytest.approx(1)
    assert len(named) == 2 * len(world.goal.term_weights)
    assert all(describe(name).section == "Gradients by term" for name in named)


def test_fused_kernels_give_the_same_norms(world):
    goal = tiny_models.objective(kernels=FUSED)
    assert measured(world, goal) == pytest.approx(measured(world), rel=1e-4)


def test_the_loss_scale_is_taken_out(world):
    assert measured(world, scale=1024.0) == pytest.approx(measured(world), rel=1e-5)


def test_gradients_and_random_streams_are_left_alone(world):
    for weight in world.module.parameters():
        weight.grad = torch.full_like(weight, 7.0)
    torch.manual_seed(11)
    expected = torch.rand(4)
    measured(world, seed=11)
    assert torch.equal(torch.rand(4), expected)
    assert all(bool((weight.grad == 7.0).all()) for weight in world.module.parameters())
    world.module.zero_grad(set_to_none=True)


def test_small_buckets_change_nothing(world, monkeypatch):
    whole = measured(world)
    monkeypatch.setattr("distill_engine.train.term_gradients._BUCKET_ELEMENTS", 100)
    assert measured(world) == pytest.approx(whole, rel=1e-5)


def test_due_once_at_every_nth_attempt(world):
    gradients = TermGradients(world.goal, world.module, 3, lambda: 1.0, CPU)
    done = []
    for attempt in range(8):
        for micro_batch in range(2):
            if gradients.due(attempt):
                done.append((attempt, micro_batch))
                gradients.measure(attempt, world.batch, world.teacher_features, world.divisor, one_rank)
    assert done == [(0, 0), (3, 0), (6, 0)]
    assert gradients.read() and gradients.read() == {}, "read once"


def test_a_gradient_that_is_not_finite_is_told_as_such(world):
    norms = measured(world, scale=math.inf)
    assert not any(math.isfinite(value) for name, value in norms.items() if "norm" in name)


def test_an_interval_of_nothing_is_refused(world):
    with pytest.raises(ValueError, match="at least 1"):
        TermGradients(world.goal, world.module, 0, lambda: 1.0, CPU)
