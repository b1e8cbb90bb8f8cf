"""Starts that gain less than they cost come to an end, with that reason; all others go on."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from distill_engine.cluster.exit_codes import FAILED, STOPPED_AND_SAVED
from launcher.attempts import Start, read_attempts, record_end, record_start
from launcher.requeue import ENDED_FROM_OUTSIDE, Attempt, decide
from launcher.worth import STARTS, too_little


def starts(*steps: int, seconds: float = 300.0, pace: float = 10.0, code: int = STOPPED_AND_SAVED) -> list[Attempt]:
    return [Attempt("7", code, step, seconds=seconds, pace=pace) for step in steps]


@pytest.mark.parametrize("code", [STOPPED_AND_SAVED, FAILED])
def test_a_few_steps_a_start_end_with_that_reason(code):
    decision = decide(starts(3, 6, 9, 12, code=code))
    assert (decision.action, decision.code) == ("stop", code)
    assert "gained fewer steps than their beginning costs: the last one 3 in 300 s" in decision.reason
    assert "270 s were no training, the time of 27 steps" in decision.reason and "--time" in decision.reason


@pytest.mark.parametrize(
    "attempts",
    [
        starts(3, 6, 9),  # too few to tell
        starts(3, 6, 24, 27),  # one gained 18 steps: 180 s of 300 s
        starts(15, 30, 45, 60),  # half of the time is training
        starts(3, 6, 9, 12, pace=0.0),  # unknown
        [*starts(3, 6, 9), replace(starts(12)[0], seconds=0.0)],
        [*starts(20), *starts(23, 26, 29)],
    ],
)
def test_other_starts_go_on(attempts):
    assert too_little(attempts) == "" and decide(attempts).action == "requeue"


def test_starts_that_slurm_ended_from_outside_count_for_nothing():
    preempted = [replace(one, code=None, reason=ENDED_FROM_OUTSIDE) for one in starts(3, 4, 5)]
    assert decide([*starts(6), *preempted, *starts(9, 12)]).action == "requeue"
    assert decide([*starts(6), *preempted, *starts(9, 12, 15)]).action == "stop"


def test_the_last_starts_count_and_not_the_good_ones_before():
    assert decide(starts(100, 103, 106, 109, 112)).action == "stop"
    assert STARTS == 4


def test_how_long_a_start_lasted_is_written_down(tmp_path, monkeypatch):
    clock = [datetime(2026, 1, 1, tzinfo=timezone.utc)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return clock[0]

    monkeypatch.setattr("launcher.attempts.datetime", Clock)
    for number in range(2):
        record_start(tmp_path, Start("7", number), "n1")
        clock[0] += timedelta(seconds=100 + number)
        record_end(tmp_path, Start("7", number), STOPPED_AND_SAVED, pace=2.5)
        clock[0] += timedelta(seconds=999)
    record_end(tmp_path, Start("8", 0), FAILED)
    assert [(one.seconds, one.pace) for one in read_attempts(tmp_path)] == [(100.0, 2.5), (101.0, 2.5), (0.0, 0.0)]
