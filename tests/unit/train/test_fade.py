"""Feature terms fade by the step alone; terms of logits stay; a balancer's factors are multiplied."""

import pytest
import torch

from distill_engine.losses.config import LossWeights
from distill_engine.train.balancing import LossTerms
from distill_engine.train.fade import Fade

WEIGHTS = LossWeights({"task": 1, "prediction": 4, "hidden": 0.5, "self_attention": 2})
FADING = {term.name: term.operand != "logits" for term in WEIGHTS.terms}
FEATURES = ("encoder_hidden", "decoder_hidden", "encoder_self_attention", "decoder_self_attention")


def test_features_fall_to_nothing_and_logits_stay():
    fade = Fade(FADING, 100)
    for step, left in ((0, 1.0), (25, 0.75), (50, 0.5), (100, 0.0), (1000, 0.0)):
        found = fade.factors(step, None)
        assert found == {"task": 1.0, "prediction": 1.0} | dict.fromkeys(FEATURES, left)
    falling = [fade.factors(step, None)["decoder_hidden"] for step in range(101)]
    assert (
        falling == sorted(falling, reverse=True) and len(set(falling)) <= 65
    )  # each new value is a copy to the device
    assert all(abs(value - (1 - step / 100)) <= 1 / 64 for step, value in enumerate(falling))


def test_the_factors_of_a_balance_are_multiplied():
    fade = Fade(FADING, 10)
    others = {term.name: 3.0 for term in WEIGHTS.terms}
    assert fade.factors(5, others) == {"task": 3.0, "prediction": 3.0} | dict.fromkeys(FEATURES, 1.5)


@pytest.mark.parametrize("world", ["blenderbot"], indirect=True)
def test_a_run_reads_them_at_its_step_and_what_has_faded_adds_nothing(world):
    goal = world.goal
    fade = Fade({term.name: term.operand != "logits" for term in goal.terms_used}, 10)
    terms = LossTerms(None, None, None, fade)
    assert terms.factors() == fade.factors(0, None)
    terms.before_backward(7, world.batch, world.teacher_features, world.divisor)
    assert terms.factors() == fade.factors(7, None)
    torch.manual_seed(0)
    student = world.module(world.batch, goal.student_request())[0]
    found = goal.terms(student, world.teacher_features, world.batch)
    weighted = goal.weighted(found, world.divisor)
    whole = goal.total(found, world.divisor, fade.factors(10, None))
    torch.testing.assert_close(whole, weighted["task"] + weighted["prediction"])
