"""The picture and the lines, at the widths that people have."""

import math

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.spinner import Spinner

from distill_engine.telemetry.metrics import terms
from distill_engine.telemetry.progress_view import (
    ProgressState,
    about,
    duration,
    number,
    picture,
    train_line,
    valid_line,
)


def values_of(terms):
    values = {"train/total": 4.81234, "train/ppl": 3.21, "train/lr": 1e-4, "train/tokens_per_second": 12345.0}
    for position, term in enumerate(terms):
        values[f"train/term/{term}/raw"] = 2.0 / 10**position
        values[f"train/term/{term}/weighted"] = 2.0 / 2**position
    return values


def state_of(terms, **changes):
    state = ProgressState("demo", total_steps=500, phase="training", step=130, until_validation="20 steps")
    state.eta_seconds, state.train, state.best = 200.0, values_of(terms), 3.39
    state.valid = {
        "valid/ppl": 3.4,
        "valid/token_accuracy": 0.612,
        "valid/teacher_agreement": 0.55,
        "valid/seconds": 12,
    }
    for name, value in changes.items():
        setattr(state, name, value)
    return state


def lines_of(state, width, height=24):
    console = Console(width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(picture(state, 72.0, Spinner("dots"), height))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("phase", ["starting", "training", "validating", "saving", "finished", "failed"])
def test_picture_fits_and_nothing_is_cut(width, phase):
    lines = lines_of(state_of(terms(), phase=phase), width)
    assert {cell_len(line) for line in lines} == {width}
    assert len(lines) <= 24
    assert "…" not in "".join(lines)


def test_picture_shows_everything_that_is_known():
    text = "\n".join(lines_of(state_of(["task", "prediction"]), 80))
    for expected in (
        "demo",
        "training · step 130 of 500 · 0:01:12 · validation in 20 steps",
        "3 min left",
        "4.812",
        "3.21",
        "3.4",
        "3.39",
        "1.0e-04",
        "12.3k",
    ):
        assert expected in text
    assert "task" in text and "67 %" in text and "prediction" in text and "33 %" in text
    assert "encoder hidden" not in text


def test_without_a_limit_there_is_no_bar_and_no_estimate():
    text = "\n".join(lines_of(state_of([], total_steps=None, eta_seconds=None), 80))
    assert "step 130 ·" in text and "━" not in text and "left" not in text


def test_before_the_first_record_only_the_headline_and_the_bar():
    assert len(lines_of(ProgressState("demo", total_steps=5, step=1), 80)) == 4


def test_a_low_terminal_goes_without_the_table_of_terms():
    lines = lines_of(state_of(terms()), 80, height=16)
    assert len(lines) <= 16 and "share of the loss" not in "\n".join(lines)


def test_numbers_that_are_not_finite_do_not_break_the_picture():
    state = state_of(["task", "prediction"])
    state.train = {**state.train, "train/total": math.nan, "train/term/task/weighted": math.inf}
    assert "nan" in "\n".join(lines_of(state, 80))


def test_lines():
    state = state_of(["task", "prediction"])
    assert train_line(state, 3725.0) == (
        "1:02:05  step 130/500  loss 4.812  task 2  prediction 0.2  ppl 3.21  lr 1.0e-04  tokens/s 12.3k  left 3 min"
    )
    assert valid_line(state) == (
        "step 130/500  valid ppl 3.4  best 3.39  token accuracy 61.2 %  agrees with teacher 55.0 %  12 s"
    )
    assert "new best" in valid_line(state_of([], best=3.4))


@pytest.mark.parametrize(
    ("metric", "own"), [("ppl", "2.9"), ("token_accuracy", "70.0 %"), ("talk/ppl", "2.7"), ("total", "2.9")]
)
def test_the_teachers_own_numbers_stand_beside_the_students(metric, own):
    state = state_of(terms(), metric=metric)
    state.valid |= {"valid/teacher_ppl": 2.9, "valid/teacher_token_accuracy": 0.7, "valid/talk/teacher_ppl": 2.7}
    assert "teacher's ppl 2.9  teacher's accuracy 70.0 %" in valid_line(state)
    for width in (80, 120):
        lines = lines_of(state, width)
        assert {cell_len(line) for line in lines} == {width}
        assert "…" not in "".join(lines) or metric != "ppl", "its name is short enough for any width"
        (header,) = [number for number, line in enumerate(lines) if "teacher's" in line]
        assert own in lines[header + 1]


def test_the_deciding_metric_may_be_another_one():
    state = state_of([], metric="token_accuracy", best=0.612)
    assert (
        valid_line(state)
        == "step 130/500  valid token accuracy 61.2 %  new best  ppl 3.4  agrees with teacher 55.0 %  12 s"
    )
    assert "61.2 %" in "\n".join(lines_of(state, 80))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (4.81234, "4.812"),
        (1e-4, "1.0e-04"),
        (9999.4, "9999"),
        (65536, "65.5k"),
        (2e7, "2.0e+07"),
        (-3.5, "-3.5"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_durations():
    assert duration(3725.9) == "1:02:05"
    assert [about(seconds) for seconds in (40, 200, 7800, 3600 * 76)] == ["40 s", "3 min", "2 h 10 min", "3 d 4 h"]
