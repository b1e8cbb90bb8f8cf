"""Policies decide the same with and without interruption, and as ParlAI's table of flags says."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.train.policies import EarlyStopping, Every, KeepBest, StopReason

# The same examples every time, however busy the machine is.
REPEATABLE = settings(deadline=None, derandomize=True, max_examples=150)

VALUES = st.lists(
    st.one_of(st.floats(0.5, 5.0).map(lambda v: round(v, 1)), st.sampled_from([math.nan, math.inf, -math.inf])),
    max_size=25,
)
DIRECTIONS = st.sampled_from(["min", "max"])


def answers(policy: Any, inputs: list[Any], ask: Callable[[Any, Any], Any]) -> list[Any]:
    return [ask(policy, value) for value in inputs]


def interrupted(make: Callable[[], Any], inputs: list[Any], cut: int, ask: Callable[[Any, Any], Any]) -> list[Any]:
    """Answers of a policy that is thrown away after `cut` inputs and built again from its JSON state."""
    first = make()
    before = answers(first, inputs[:cut], ask)
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    return before + answers(second, inputs[cut:], ask)


def observe(policy: Any, value: float) -> Any:
    return policy.observe(value)


@REPEATABLE
@given(VALUES, DIRECTIONS, st.integers(0, 25))
def test_keep_best_survives_interruption(values, direction, cut):
    def make() -> KeepBest:
        return KeepBest(direction)

    assert interrupted(make, values, cut, observe) == answers(make(), values, observe)


@REPEATABLE
@given(VALUES, DIRECTIONS)
def test_keep_best_is_the_running_extreme_of_finite_values(values, direction):
    policy = KeepBest(direction)
    better = min if direction == "min" else max
    for position, value in enumerate(values):
        seen = [v for v in values[:position] if math.isfinite(v)]
        expected = math.isfinite(value) and (not seen or better([*seen, value]) != better(seen))
        assert policy.observe(value) is expected
    finite = [v for v in values if math.isfinite(v)]
    assert policy.best == (better(finite) if finite else None)


@REPEATABLE
@given(VALUES, DIRECTIONS, st.integers(0, 25), st.integers(1, 4) | st.none(), st.floats(0.5, 5) | st.none())
def test_early_stopping_survives_interruption(values, direction, cut, patience, stop_at):
    def make() -> EarlyStopping:
        return EarlyStopping(patience, direction, stop_at)

    assert interrupted(make, values, cut, observe) == answers(make(), values, observe)


def test_patience_counts_validations_in_a_row_without_strict_improvement():
    policy = EarlyStopping(3, "min")
    verdicts = answers(policy, [5.0, 5.0, 5.1, 4.9, 4.9, math.nan, 6.0], observe)
    assert verdicts == [None] * 6 + [StopReason.OUT_OF_PATIENCE]
    assert policy.verdict is StopReason.OUT_OF_PATIENCE


def test_without_patience_it_never_stops():
    assert set(answers(EarlyStopping(None, "min"), [1.0] * 100, observe)) == {None}


@pytest.mark.parametrize(("direction", "value"), [("min", 1.0), ("max", 3.0)])
def test_target_reached_includes_the_target_itself_and_outlasts_a_restart(direction, value):
    policy = EarlyStopping(20, direction, stop_at=value)
    assert policy.observe(2.0) is None
    assert policy.observe(value) is StopReason.TARGET_REACHED
    again = EarlyStopping(20, direction, stop_at=value)
    again.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    assert again.verdict is StopReason.TARGET_REACHED


def test_infinity_never_reaches_a_target():
    assert EarlyStopping(5, "max", stop_at=3.0).observe(math.inf) is None
    assert EarlyStopping(5, "min", stop_at=3.0).observe(-math.inf) is None


@pytest.mark.parametrize("patience", [0, -1])
def test_impossible_patience_is_refused(patience):
    with pytest.raises(ValueError, match=f"patience is {patience}"):
        EarlyStopping(patience, "min")


def test_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="'up'"):
        KeepBest("up")


POSITIONS = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5)), max_size=40)


def act(trigger: Every, position: tuple[int, float, float]) -> bool:
    due = trigger.due(*position)
    if due:
        trigger.fired(*position)
    return due


@REPEATABLE
@given(POSITIONS, st.integers(0, 40), st.integers(1, 5) | st.none(), st.floats(0.1, 9) | st.none())
def test_trigger_survives_interruption(moves, cut, steps, seconds):
    positions, step, clock = [], 0, 0.0
    for by_steps, by_seconds in moves:
        step, clock = step + by_steps, clock + by_seconds
        positions.append((step, step / 7, clock))

    def make() -> Every:
        return Every(steps=steps, epochs=0.5, seconds=seconds)

    assert interrupted(make, positions, cut, act) == answers(make(), positions, act)


def test_whichever_limit_comes_first_restarts_all():
    trigger = Every(steps=10, epochs=2.0, seconds=60.0)
    assert not trigger.due(9, 1.9, 59.9)
    assert trigger.due(3, 0.1, 60.0)
    trigger.fired(3, 0.1, 75.0)  # acting took 15 seconds: they do not count
    assert trigger.remaining(3, 0.1, 75.0) == (10, 2.0, 60.0)
    assert not trigger.due(12, 2.0, 134.0)
    assert trigger.due(13, 0.2, 80.0)
    assert trigger.due(4, 2.1, 80.0)


def test_every_tenth_of_an_epoch_is_not_late_by_rounding():
    trigger = Every(epochs=0.1)
    assert [act(trigger, (step, step / 10, 0.0)) for step in range(1, 50)] == [True] * 49


def test_remaining_is_for_display_and_never_negative():
    assert Every(steps=10).remaining(4, 0.0, 0.0) == (6, None, None)
    assert Every(seconds=10).remaining(4, 0.0, 25.0) == (None, None, 0.0)


def test_without_a_limit_it_is_never_due():
    assert not Every().due(10**9, 1e9, 1e9)


def test_a_clock_that_jumps_back_only_delays():
    trigger = Every(seconds=10)
    trigger.fired(1, 0.0, 100.0)
    assert not trigger.due(2, 0.0, 50.0)
    assert trigger.due(3, 0.0, 110.0)


@pytest.mark.parametrize("limit", [{"steps": 0}, {"epochs": -1.0}, {"seconds": 0.0}])
def test_impossible_limits_are_refused(limit):
    with pytest.raises(ValueError, match=next(iter(limit))):
        Every(**limit)
