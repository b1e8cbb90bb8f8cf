"""Feature terms fade by the step alone; terms of logits stay; a balancer's factors are multiplied."""

import pytest
import torch

from distill_engine.losses.config import LossWeights
from distill_engine.train.balancing import LossTerms
from distill_engine.train.fade import Fade
from distill_engine.train.progress import EndReason, Progress

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
    progress = Progress()
    terms = LossTerms(None, None, None, fade)
    terms.begins_at(progress)
    assert terms.factors() == fade.factors(0, None)
    progress.steps, progress.skipped_steps = 5, 2
    assert terms.factors() == fade.factors(7, None)
    torch.manual_seed(0)
    student = world.module(world.batch, goal.student_request())[0]
    found = goal.terms(student, world.teacher_features, world.batch)
    weighted = goal.weighted(found, world.divisor)
    whole = goal.total(found, world.divisor, fade.factors(10, None))
    torch.testing.assert_close(whole, weighted["task"] + weighted["prediction"])


def test_a_resumed_run_that_has_its_last_validation_left_weighs_it_by_its_own_step(toy_in, tmp_path):
    def start(folder, **options):
        run = toy_in(folder, max_steps=4, **options)
        terms = LossTerms(None, None, None, Fade({"task": False, "prediction": True}, 8))
        run.hooks.each.append(terms)
        run.policies.factors = terms.factors
        return run

    whole = start(tmp_path / "whole")
    assert whole.trainer.run() is EndReason.MAX_STEPS
    first = start(tmp_path / "stopped", stop_at_attempt=4)
    assert first.trainer.run() is EndReason.STOP_REQUESTED and not first.records("valid")
    second = start(tmp_path / "stopped")
    assert second.trainer.run() is EndReason.MAX_STEPS and second.student.attempts == 4
    ((_, _, expected),), ((_, _, found),) = whole.records("valid"), second.records("valid")
    assert found == expected
    assert expected["valid/total"] == pytest.approx(
        expected["valid/term/task/raw"] + 2.0 * 0.5 * expected["valid/term/prediction/raw"]
    )
