"""Factors from sizes: the formula, its limits, what tells nothing, and that no interruption changes an answer."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.train.balance import (
    LEAST_AGREEMENT,
    SMALLEST_FACTOR,
    GradientAlignment,
    GradientNorm,
    InitialScale,
    anchor_of,
    reference_of,
)

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=40)
TERMS = ("task", "encoder", "prediction")
SIZES = st.fixed_dictionaries(
    {term: st.one_of(st.floats(1e-9, 1e9), st.sampled_from([0.0, math.nan, math.inf])) for term in TERMS}
)


def gradient_norm(terms=TERMS, every=100, smoothing=0.5, limit=1e9):
    return GradientNorm(terms, every, smoothing, limit)


def initial_scale(terms=TERMS, steps=3, limit=1e9):
    return InitialScale(terms, steps, limit)


def alignment(weights=None, every=100, smoothing=0.5, limit=1e9):
    return GradientAlignment(weights or {"task": 1.0, "encoder": 1.0, "prediction": 1.0}, every, smoothing, limit)


BOTH = [initial_scale, gradient_norm]
PULLS = {"task": 6.0, "encoder": 0.25, "prediction": 12.0}


@pytest.mark.parametrize("make", BOTH)
def test_one_observation_makes_every_term_as_large_as_the_anchor(make):
    policy = make()
    assert policy.factors == dict.fromkeys(TERMS, 1.0), "nothing is known yet"
    policy.observe({"task": 6.0, "encoder": 0.25, "prediction": 12.0})
    assert policy.factors == pytest.approx({"task": 1.0, "encoder": 24.0, "prediction": 0.5})


def test_initial_scale_is_a_ratio_of_means_not_a_mean_of_ratios():
    policy = initial_scale()
    for task, encoder in ((6.0, 0.0), (4.0, 1.0), (2.0, 5.0)):
        policy.observe({"task": task, "encoder": encoder, "prediction": 1.0})
    assert policy.factors == pytest.approx({"task": 1.0, "encoder": 2.0, "prediction": 4.0})


def test_gradient_norm_is_a_corrected_exponential_average_of_logarithms():
    policy = gradient_norm(smoothing=0.75)
    for ratio in (8.0, 2.0, 0.5):
        policy.observe({"task": ratio, "encoder": 1.0, "prediction": ratio})
    weights = [0.75**2, 0.75, 1.0]
    by_hand = sum(w * math.log(ratio) for w, ratio in zip(weights, (8.0, 2.0, 0.5), strict=True)) / sum(weights)
    assert policy.factors == pytest.approx({"task": 1.0, "encoder": math.exp(by_hand), "prediction": 1.0})


def test_without_smoothing_only_the_last_counts():
    policy = gradient_norm(smoothing=0.0)
    for ratio in (8.0, 2.0):
        policy.observe({"task": ratio, "encoder": 1.0, "prediction": 1.0})
    assert policy.factors["encoder"] == pytest.approx(2.0)


@pytest.mark.parametrize("nothing", [math.nan, math.inf])
@pytest.mark.parametrize("make", BOTH)
def test_a_size_that_is_not_finite_leaves_its_term_as_it_was(make, nothing):
    policy = make()
    policy.observe({"task": 6.0, "encoder": nothing, "prediction": 12.0})
    assert policy.factors == pytest.approx({"task": 1.0, "encoder": 1.0, "prediction": 0.5})
    policy.observe({"task": 6.0, "encoder": 3.0, "prediction": 12.0})
    known = policy.factors
    assert known == pytest.approx({"task": 1.0, "encoder": 2.0, "prediction": 0.5})
    policy.observe({"task": 6.0, "encoder": nothing, "prediction": 12.0})
    assert policy.factors == pytest.approx(known)


@pytest.mark.parametrize("nothing", [0.0, math.nan, math.inf])
def test_without_the_anchor_nothing_is_learnt_from_gradients(nothing):
    policy = gradient_norm()
    policy.observe({"task": nothing, "encoder": 2.0, "prediction": 3.0})
    assert policy.factors == dict.fromkeys(TERMS, 1.0)


def test_a_gradient_of_zero_keeps_the_factor_and_a_value_of_zero_has_none():
    policy = gradient_norm()
    policy.observe({"task": 2.0, "encoder": 0.0, "prediction": 1.0})
    assert policy.factors["encoder"] == 1.0
    policy.observe({"task": 2.0, "encoder": 4.0, "prediction": 1.0})
    assert policy.factors["encoder"] == pytest.approx(0.5), "its first measurement counts in full"
    start = initial_scale()
    start.observe({"task": 2.0, "encoder": 0.0, "prediction": 1.0})
    assert start.factors["encoder"] == 1.0


@pytest.mark.parametrize("make", BOTH)
def test_factors_stay_within_their_limits(make):
    policy = make(limit=100.0)
    policy.observe({"task": 1.0, "encoder": 1e-5, "prediction": 1e12})
    assert policy.factors == pytest.approx({"task": 1.0, "encoder": 100.0, "prediction": SMALLEST_FACTOR})


def test_what_lies_beyond_a_limit_does_not_hold_the_average_there():
    policy = gradient_norm(limit=100.0)
    policy.observe({"task": 1.0, "encoder": 1e-30, "prediction": 1.0})
    policy.observe({"task": 1.0, "encoder": 1.0, "prediction": 1.0})
    assert policy.factors["encoder"] == pytest.approx(100 ** (1 / 3)), "as if 100 had been measured"


def test_the_task_is_the_anchor_or_prediction_or_the_first():
    assert anchor_of(["task", "encoder", "prediction"]) == "task"
    assert anchor_of(["encoder", "prediction"]) == "prediction"
    assert anchor_of(["encoder_hidden", "cross_attention"]) == "encoder_hidden"
    policy = initial_scale(("encoder", "prediction"))
    policy.observe({"encoder": 2.0, "prediction": 8.0})
    assert policy.factors == {"encoder": 4.0, "prediction": 1.0}


def test_attempts_that_are_measured():
    assert [attempt for attempt in range(500) if gradient_norm(every=200).due(attempt)] == [0, 1, 4, 16, 64, 200, 400]
    assert [attempt for attempt in range(20) if gradient_norm(every=4).due(attempt)] == [0, 1, 4, 8, 12, 16]
    assert all(gradient_norm(every=1).due(attempt) for attempt in range(5))
    assert [attempt for attempt in range(9) if initial_scale(steps=3).due(attempt)] == [0, 1, 2]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 0.5, 4.0)])
def test_what_the_others_pull_together_is_shared_out_by_agreement(weights):
    policy = alignment(dict(zip(TERMS, weights, strict=True)))
    assert policy.factors == dict.fromkeys(TERMS, 1.0), "nothing is known yet"
    policy.observe(PULLS, {"task": 0.9, "encoder": 0.2, "prediction": 0.8})
    _, encoder, prediction = weights
    share = (encoder + prediction) / (0.2 * encoder + 0.8 * prediction)
    assert policy.factors == pytest.approx({"task": 1.0, "encoder": 24 * 0.2 * share, "prediction": 0.5 * 0.8 * share})
    pulls = {term: policy.factors[term] * PULLS[term] / PULLS["task"] for term in TERMS}
    assert encoder * pulls["encoder"] + prediction * pulls["prediction"] == pytest.approx(encoder + prediction)


def test_terms_that_agree_alike_or_not_at_all_are_left_to_gradient_norm():
    for agreement in (0.3, 0.0, -0.7):
        policy = alignment()
        policy.observe(PULLS, dict.fromkeys(TERMS, agreement))
        assert policy.factors == pytest.approx({"task": 1.0, "encoder": 24.0, "prediction": 0.5})


def test_a_term_at_odds_keeps_the_least_share_and_comes_back():
    policy = alignment(smoothing=0.0)
    policy.observe(PULLS, {"task": 1.0, "encoder": -1.0, "prediction": 1.0})
    assert policy.factors["encoder"] == pytest.approx(24 * LEAST_AGREEMENT * 2 / (1 + LEAST_AGREEMENT))
    policy.observe(PULLS, {"task": 1.0, "encoder": 1.0, "prediction": 1.0})
    assert policy.factors["encoder"] == pytest.approx(24.0)


def test_agreements_are_averaged_and_what_is_not_finite_is_left_out():
    policy = alignment(smoothing=0.75)
    for agreement in (0.8, math.nan, 0.2, math.inf, -0.4):
        policy.observe(PULLS, {"task": 1.0, "encoder": agreement, "prediction": 1.0})
    average = (0.75**2 * 0.8 + 0.75 * 0.2 - 0.4) / (0.75**2 + 0.75 + 1)
    assert policy.factors["encoder"] == pytest.approx(24 * average * 2 / (1 + average))
    unknown = alignment()
    unknown.observe(PULLS, {"task": 1.0, "encoder": math.nan, "prediction": 0.5})
    assert unknown.factors == pytest.approx({"task": 1.0, "encoder": 24.0, "prediction": 0.5})


@pytest.mark.parametrize("nothing", [0.0, math.nan, math.inf])
def test_a_gradient_that_tells_nothing_has_no_part_in_what_is_shared_out(nothing):
    """A copied embedding has no gradient at first: its weight must not go to the others, nor theirs to it."""
    weights = dict.fromkeys((*TERMS, "cross_attention"), 1.0)
    policy = alignment(weights)
    policy.observe(PULLS | {"cross_attention": nothing}, dict.fromkeys(weights, 0.0) | {"prediction": 1.0})
    without = alignment()
    without.observe(PULLS, dict.fromkeys(TERMS, 0.0) | {"prediction": 1.0})
    assert policy.factors == pytest.approx(without.factors | {"cross_attention": 1.0})
    nobody = alignment()
    nobody.observe(PULLS | {"task": nothing}, {"task": math.nan, "encoder": 0.2, "prediction": 1.0})
    assert nobody.factors == dict.fromkeys(TERMS, 1.0), "without the anchor nothing is learnt"


def test_shared_out_factors_stay_within_their_limits():
    policy = alignment(limit=30.0)
    policy.observe(PULLS, {"task": 1.0, "encoder": 1.0, "prediction": 0.0})
    assert policy.factors["encoder"] == 30.0


AGREEMENTS = st.fixed_dictionaries({term: st.one_of(st.floats(-1, 1), st.sampled_from([math.nan])) for term in TERMS})


@REPEATABLE
@given(seen=st.lists(st.tuples(SIZES, AGREEMENTS), max_size=8), cut=st.integers(0, 8))
def test_an_interrupted_alignment_gives_the_same_factors_to_the_last_bit(seen, cut):
    whole, first, second = alignment(), alignment(), alignment()
    for one in seen:
        whole.observe(*one)
    for one in seen[:cut]:
        first.observe(*one)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    for one in seen[cut:]:
        second.observe(*one)
    assert second.factors == whole.factors and second.state_dict() == whole.state_dict()
    assert all(SMALLEST_FACTOR <= factor <= 1e9 for factor in whole.factors.values())
    assert whole.factors["task"] == 1.0


def test_prediction_is_what_others_should_agree_with():
    assert reference_of(TERMS) == "prediction"
    assert reference_of(("task", "encoder")) == "task" and reference_of(("encoder", "cross_attention")) == "encoder"


@REPEATABLE
@given(sizes=st.lists(SIZES, max_size=8), cut=st.integers(0, 8))
@pytest.mark.parametrize("make", BOTH)
def test_an_interrupted_policy_gives_the_same_factors_to_the_last_bit(make, sizes, cut):
    whole, first, second = make(), make(), make()
    for one in sizes:
        whole.observe(one)
    for one in sizes[:cut]:
        first.observe(one)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    for one in sizes[cut:]:
        second.observe(one)
    assert second.factors == whole.factors
    assert second.state_dict() == whole.state_dict()
    assert all(SMALLEST_FACTOR <= factor <= 1e9 for factor in whole.factors.values())
    assert whole.factors["task"] == 1.0


@pytest.mark.parametrize("make", BOTH)
def test_a_state_is_not_shared_with_its_policy(make):
    policy = make()
    state = policy.state_dict()
    policy.observe({"task": 6.0, "encoder": 0.25, "prediction": 12.0})
    assert state == make().state_dict()


@pytest.mark.parametrize(
    "make",
    [
        lambda: initial_scale(steps=0), lambda: initial_scale(limit=0.5), lambda: gradient_norm(every=0),
        lambda: gradient_norm(limit=0.9), lambda: gradient_norm(smoothing=1.0), lambda: gradient_norm(smoothing=-0.1),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(make):
    with pytest.raises(ValueError, match=r"is (0|0\.5|0\.9|1\.0|-0\.1):"):
        make()
