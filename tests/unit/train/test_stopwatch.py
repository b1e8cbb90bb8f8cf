"""Shares of time, with a clock that the test moves."""

import pytest
import torch

from distill_engine.train import stopwatch
from distill_engine.train.stopwatch import PHASES, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        seconds = 50.0

        def perf_counter(self) -> float:
            return self.seconds

    made = Clock()
    monkeypatch.setattr(stopwatch, "time", made)
    return made


def spend(watch: Stopwatch, clock, phase: str, seconds: float) -> None:
    with watch.phase(phase):
        clock.seconds += seconds


def test_shares_add_up_to_one_with_the_rest_as_other(clock):
    watch = Stopwatch(torch.device("cpu"))
    spend(watch, clock, "teacher", 2.0)
    spend(watch, clock, "student", 1.0)
    spend(watch, clock, "teacher", 2.0)
    clock.seconds += 3.0
    shares, wall = watch.shares()
    assert wall == 8.0
    assert shares == {"teacher": 0.5, "student": 0.125, "losses": 0, "backward": 0, "optimizer": 0, "data": 0,
                      "rollout": 0, "other": 0.375}  # fmt: skip
    assert sum(shares.values()) == 1.0 and set(shares) == {*PHASES, "other"}


def test_a_reading_starts_anew(clock):
    watch = Stopwatch(torch.device("cpu"))
    spend(watch, clock, "data", 2.0)
    watch.shares()
    spend(watch, clock, "losses", 1.0)
    shares, wall = watch.shares()
    assert (wall, shares["losses"], shares["data"]) == (1.0, 1.0, 0.0)


def test_restart_forgets_a_validation(clock):
    watch = Stopwatch(torch.device("cpu"))
    spend(watch, clock, "student", 1.0)
    clock.seconds += 100.0
    watch.restart()
    spend(watch, clock, "student", 4.0)
    shares, wall = watch.shares()
    assert (wall, shares["student"], shares["other"]) == (4.0, 1.0, 0.0)


def test_no_time_at_all_divides_by_nothing(clock):
    shares, wall = Stopwatch(torch.device("cpu")).shares()
    assert wall > 0 and shares["other"] == 1.0
