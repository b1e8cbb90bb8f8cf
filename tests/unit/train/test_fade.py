"""Feature terms fade by the step alone; terms of logits stay; a balancer's factors are multiplied."""

from dataclasses import replace

import pytest
import torch

from distill_engine.losses.config import LossWeights
from distill_engine.telemetry.averages import Averages
from distill_engine.train.balancing import LossTerms
from distill_engine.train.fade import Fade
from distill_engine.train.meter import Meter
from distill_engine.train.progress import EndReason, Progress
from distill_engine.train.term_gradients import TermGradients
from distill_engine.values import FeatureRequest

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


@pytest.mark.parametrize("definition", ["invariant", "parlai"])
@pytest.mark.parametrize("world", ["blenderbot"], indirect=True)
def test_what_has_faded_is_neither_captured_nor_computed_and_logged_no_more(world, definition):
    goal = replace(world.goal, definition=definition)
    factors = Fade({term.name: term.operand != "logits" for term in goal.terms_used}, 10).factors(10, None)
    left = goal.for_factors(factors)
    assert left.for_factors(factors) is left and goal.for_factors(None) is goal
    logits = replace(FeatureRequest(), logits=left.teacher_request().logits, head=left.teacher_request().head)
    assert left.teacher_request() == left.student_request() == logits
    divisor = goal.divisors([world.batch], torch.clone, 1)[0]
    module = world.module.eval()
    weights = list(module.model.parameters())
    student = module(world.batch, goal.student_request())[0]
    without = replace(world.teacher_features, hidden={}, attention={}, embeddings={}, encoder_output=None)
    whole = goal.terms_and_hits(student, world.teacher_features, world.batch)
    part = left.terms_and_hits(module(world.batch, left.student_request())[0], without, world.batch)
    totals = [one.total(terms, divisor, factors) for one, (terms, _) in ((goal, whole), (left, part))]
    torch.testing.assert_close(*totals)
    found = [torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True) for total in totals]
    torch.testing.assert_close(*found)

    def terms_logged(*micro_batches):
        meter = Meter(goal, Averages(), 1, lambda: factors)
        for values in micro_batches:
            meter.add_micro_batch(world.batch, *values, len(micro_batches))
        meter.count_step()
        values = meter.read(torch.clone, 1.0)
        return {name: value for name, value in values.items() if name.startswith("train/term/")}

    # an interval with both logs the mean over those in which there was something
    assert terms_logged(whole, part) == pytest.approx(terms_logged(whole), rel=1e-5)
    assert {name.split("/")[2] for name in terms_logged(part)} == {"task", "prediction"}


@pytest.mark.parametrize("world", ["blenderbot"], indirect=True)
def test_what_has_faded_has_no_gradient(world):
    goal = world.goal
    factors = Fade({term.name: term.operand != "logits" for term in goal.terms_used}, 10).factors(10, None)
    gradients = TermGradients(goal, world.module, 1, lambda: 1.0, torch.device("cpu"))
    gradients.measure(10, world.batch, replace(world.teacher_features, hidden={}), world.divisor, torch.clone, factors)
    norms = gradients.norms()
    assert list(norms) == list(goal.term_weights)
    assert {term for term, norm in norms.items() if norm > 0} == {"task", "prediction"}
