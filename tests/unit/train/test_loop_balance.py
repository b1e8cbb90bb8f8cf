"""Balanced weights in the loop: where factors go, that a resumed run is the same, and that `none` changes nothing."""

import pytest
import torch

from distill_engine.train.balance import GradientAlignment, GradientNorm, InitialScale
from distill_engine.train.balancing import LossTerms, by_gradient, by_value
from distill_engine.train.policies import Every
from distill_engine.train.term_gradients import TermGradients

METHODS = ["initial_scale", "gradient_norm", "gradient_alignment"]
TERMS = ("task", "prediction")


def options():
    """Of a run whose second attempt is skipped; fresh triggers every time, they have a state."""
    return {"max_steps": 7, "validate": Every(steps=3), "log": Every(steps=1), "skipped": {2}}


def balanced(run, method):
    module, goal, ranks = run.module, run.objective, run.ranks
    if method == "initial_scale":
        run.terms = LossTerms(by_value(InitialScale(TERMS, 3, 100.0), goal, module, ranks), None, ranks)
    else:
        aligned, settings = method == "gradient_alignment", (3, 0.5, 100.0)
        gradients = TermGradients(goal, module, None, lambda: 1.0, ranks.device)
        policy = GradientAlignment(goal.term_weights, *settings) if aligned else GradientNorm(TERMS, *settings)
        reference = "prediction" if aligned else None
        run.terms = LossTerms(by_gradient(policy, goal, gradients, ranks, reference), gradients, ranks)
    run.hooks.each.append(run.terms)
    run.policies.factors = run.terms.factors
    return run


def kept(run, kind, *left_out):
    """Records without seconds: the toy clock goes on with a machine that is busy."""
    return [
        (step, {name: v for name, v in values.items() if not name.startswith(left_out)})
        for step, _, values in run.records(kind)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_has_the_same_factors_to_the_last_bit(toy_in, tmp_path, method):
    whole = balanced(toy_in(tmp_path / "whole", **options()), method)
    whole.trainer.run()
    for stop in (1, 4):
        folder = tmp_path / f"stopped {stop}"
        first = balanced(toy_in(folder, **options(), stop_at_attempt=stop), method)
        first.trainer.run()
        second = balanced(toy_in(folder, **options()), method)
        second.trainer.run()
        assert torch.equal(second.student.table, whole.student.table)
        assert second.terms.balancer.factors == whole.terms.balancer.factors
        assert second.terms.balancer.state_dict() == whole.terms.balancer.state_dict()
        for kind in ("train", "valid"):
            assert kept(first, kind) + kept(second, kind) == kept(whole, kind)


@pytest.mark.parametrize("method", METHODS)
def test_factors_are_recorded_and_make_the_recorded_total(toy, method):
    run = balanced(toy(**options()), method)
    run.trainer.run()
    for _, _, values in run.records("train"):
        assert values["train/balance/task"] == 1.0
        assert values["train/balance/prediction"] != 1.0
        task, prediction = (values[f"train/term/{term}/raw"] for term in TERMS)
        expected = task + 2.0 * values["train/balance/prediction"] * prediction
        assert values["train/total"] == pytest.approx(expected)


def test_initial_factors_are_fixed_after_the_start(toy):
    run = balanced(toy(**options()), "initial_scale")
    run.trainer.run()
    seen = [values["train/balance/prediction"] for _, _, values in run.records("train")]
    assert len(set(seen[:2])) == 2, "the mean of attempts 0; 0 to 2 (the second was skipped)"
    assert len(set(seen[1:])) == 1


def test_gradient_norms_are_logged_at_the_attempts_that_balance(toy):
    run = balanced(toy(**options()), "gradient_norm")
    run.trainer.run()
    held = [step for step, _, values in run.records("train") if "train/gradient_norm/task" in values]
    assert held == [1, 2, 3, 6], "attempts 0, 1 (skipped: read with the next), 3 and 6"


@pytest.mark.parametrize("method", METHODS)
def test_factors_change_what_is_learnt(toy_in, tmp_path, method):
    plain = toy_in(tmp_path / "plain", **options())
    plain.trainer.run()
    run = balanced(toy_in(tmp_path / method, **options()), method)
    run.trainer.run()
    assert not torch.equal(plain.student.table, run.student.table)
    assert run.student.backwards == 2 * run.student.attempts, "one backward pass per micro-batch, as always"


def test_without_balancing_there_is_no_part_and_no_metric(toy):
    run = toy(**options())
    run.trainer.run()
    assert "balance" not in run.trainer._stateful()
    assert not any("balance" in name for _, _, values in run.records("train") for name in values)


@pytest.mark.parametrize("method", METHODS)
def test_without_the_factor_the_run_is_that_without_balancing(toy_in, tmp_path, method):
    """Factors that stay 1, for a policy that learns nothing: measuring alone changes no bit."""
    plain = toy_in(tmp_path / "plain", **options())
    plain.trainer.run()
    run = balanced(toy_in(tmp_path / method, **options()), method)
    run.terms.balancer._policy.observe = lambda *_: None
    run.trainer.run()
    assert torch.equal(plain.student.table, run.student.table)
    for kind in ("train", "valid"):
        assert kept(run, kind, "train/balance/", "train/gradient_") == kept(plain, kind)
