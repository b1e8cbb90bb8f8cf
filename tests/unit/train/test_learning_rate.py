"""The schedule against closed forms, against torch's own plateau rule, and across interruptions."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.train.learning_rate import LearningRate, Plateau, Warmup

# The same examples every time, however busy the machine is.
REPEATABLE = settings(deadline=None, derandomize=True, max_examples=150)

# -inf is left out: torch would call it the best loss ever, here no value that is not finite ever is.
LOSSES = st.lists(
    st.one_of(st.floats(1.0, 3.0).map(lambda v: round(v, 1)), st.sampled_from([math.nan, math.inf])), max_size=40
)


def plateau_schedule(peak=1e-4, warmup=0, **options) -> LearningRate:
    return LearningRate("reduce_on_plateau", peak, warmup=Warmup(warmup), plateau=Plateau(**options))


def torch_rates(values, peak, factor, patience, threshold, mode) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode=mode, factor=factor, patience=patience, threshold=threshold
    )
    rates = []
    for value in values:
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@REPEATABLE
@given(
    LOSSES,
    st.sampled_from([1e-4, 1.0, 5e-8]),
    st.sampled_from([0.5, 0.3]),
    st.integers(0, 3),
    st.sampled_from([0.0, 1e-4, 0.1]),
)
def test_plateau_is_torchs(values, peak, factor, patience, threshold):
    schedule = plateau_schedule(peak, factor=factor, patience=patience, threshold=threshold)
    ours = []
    for value in values:
        schedule.observe(value, step=10)
        ours.append(schedule.at(10))
    assert ours == torch_rates(values, peak, factor, patience, threshold, "min")


@REPEATABLE
@given(st.lists(st.floats(0.0, 1.0).map(lambda v: round(v, 1)), max_size=30))
def test_plateau_of_a_metric_that_grows_is_torchs(values):
    schedule = plateau_schedule(0.1, patience=1, direction="max")
    ours = []
    for value in values:
        schedule.observe(value, step=1)
        ours.append(schedule.at(1))
    assert ours == torch_rates(values, 0.1, 0.5, 1, 1e-4, "max")


@REPEATABLE
@given(LOSSES, st.integers(0, 40), st.sampled_from(["constant", "linear", "cosine", "reduce_on_plateau"]))
def test_interruption_changes_nothing(values, cut, name):
    def make() -> LearningRate:
        return LearningRate(name, 1e-3, warmup=Warmup(5), total_steps=50, plateau=Plateau(patience=1))

    def rates(schedule, first, chosen):
        seen = []
        for step, value in enumerate(chosen, start=first):
            seen.append((schedule.observe(value, step), schedule.at(step)))
        return seen

    first = make()
    before = rates(first, 0, values[:cut])
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert before + rates(second, len(values[:cut]), values[cut:]) == rates(make(), 0, values)


def test_drop_comes_on_the_fourth_bad_validation_with_patience_three():
    schedule = plateau_schedule(1.0)
    assert [schedule.observe(2.0, 1) for _ in range(9)] == [False] * 4 + [True] + [False] * 3 + [True]
    assert schedule.at(100) == 0.25


def test_warmup_ignores_validations():
    schedule = plateau_schedule(1.0, warmup=10, patience=0)
    assert not any(schedule.observe(2.0, step) for step in range(11))
    assert schedule.observe(1.0, 11) is False
    assert schedule.observe(1.0, 12) is True


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "reduce_on_plateau"])
def test_warmup_rises_from_start_to_the_full_rate(name):
    schedule = LearningRate(name, 0.01, warmup=Warmup(100, start=1e-4), total_steps=1000)
    # ParlAI's own rule up to its last warm-up step; from there on it stays at 0.99 of the peak, this goes on to 1.
    for step in range(100):
        assert schedule.at(step) == pytest.approx(0.01 * (1e-4 + (1 - 1e-4) * step / 100), rel=1e-12)
    assert schedule.at(100) == 0.01
    assert schedule.at(0) > 0


def test_linear_and_cosine_fall_to_the_final_share_and_stay():
    linear = LearningRate("linear", 1.0, warmup=Warmup(10), total_steps=110, final_share=0.2)
    cosine = LearningRate("cosine", 1.0, total_steps=100)
    assert [linear.at(step) for step in (10, 60, 110, 500)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert [cosine.at(step) for step in (0, 25, 50, 100, 101)] == pytest.approx(
        [1.0, 0.5 * (1 + math.sqrt(0.5)), 0.5, 0.0, 0.0]
    )


def test_only_the_plateau_schedule_listens():
    schedule = LearningRate("constant", 1.0)
    assert not any(schedule.observe(2.0, step) for step in range(50))
    assert schedule.at(50) == 1.0


def test_numbers_of_another_arithmetic_are_compared_among_themselves():
    schedule = LearningRate("reduce_on_plateau", 1.0, plateau=Plateau(0.5, patience=1))
    assert [schedule.observe(value, 9) for value in (1.0, 2.0, 2.0, 2.0)] == [False, False, True, False]
    schedule.forget()
    assert [schedule.observe(value, 9) for value in (3.0, 2.5, 2.6, 2.6)] == [False, False, False, True]
    assert schedule.at(9) == 0.25


@pytest.mark.parametrize("total", [None, 10])
def test_an_end_inside_the_warmup_is_refused(total):
    with pytest.raises(ValueError, match="total_steps"):
        LearningRate("cosine", 1.0, warmup=Warmup(10), total_steps=total)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Warmup(-1), "-1"),
        (lambda: Warmup(10, start=0.0), "starts at 0.0"),
        (lambda: Plateau(factor=1.0), "factor is 1.0"),
        (lambda: LearningRate("step", 1.0), "'step'"),
    ],
)
def test_impossible_settings_are_refused(make, names):
    with pytest.raises(ValueError, match=names):
        make()
