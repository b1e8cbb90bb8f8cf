"""Start again, or stop: every way a job ends, and that no mixture of them goes on for ever."""

import itertools

import pytest

from distill_engine.cluster.exit_codes import BAD_INPUT, DONE, FAILED, HUNG, RETRY, STOPPED_AND_SAVED, USAGE
from launcher.requeue import (
    ENDED_FROM_OUTSIDE,
    LOST,
    MAX_CRASHES,
    MAX_STARTS,
    NO_VERDICT,
    PREFLIGHT,
    Attempt,
    decide,
)

ABORTED, KILLED = 134, 137


def history(*ends: tuple) -> list[Attempt]:
    return [Attempt("7", *end) for end in ends]


@pytest.mark.parametrize(
    ("ends", "action", "code"),
    [
        ([(DONE, 9)], "done", DONE),
        ([(STOPPED_AND_SAVED, 4)], "requeue", STOPPED_AND_SAVED),
        ([(STOPPED_AND_SAVED, 4), (STOPPED_AND_SAVED, 8)] * 9, "requeue", STOPPED_AND_SAVED),
        ([(BAD_INPUT, -1)], "stop", BAD_INPUT),
        ([(USAGE, -1)], "stop", USAGE),
        ([(STOPPED_AND_SAVED, 4), (USAGE, 4)], "stop", USAGE),  # the program has changed since
        ([(USAGE, -1, NO_VERDICT)], "requeue", USAGE),  # Python's own: it did not find the program, which may pass
        ([(RETRY, 4)], "requeue", RETRY),
        ([(RETRY, 4)] * 3, "stop", RETRY),
        ([(137, -1)], "requeue", 137),
        ([(137, 4), (137, 4)], "requeue", 137),
        ([(137, 4), (1, 4), (143, 4)], "stop", 143),
        ([(137, 4), (137, 4), (137, 6)], "requeue", 137),
        ([(137, 4), (137, 4), (STOPPED_AND_SAVED, 4), (137, 4)], "stop", 137),
        ([(STOPPED_AND_SAVED, 4)] * 3, "requeue", STOPPED_AND_SAVED),
        ([(STOPPED_AND_SAVED, 4)] * 4, "stop", STOPPED_AND_SAVED),
        ([(STOPPED_AND_SAVED, 4, HUNG)] * 3, "stop", STOPPED_AND_SAVED),
        ([(None, 4, LOST)] * 2, "requeue", FAILED),
        ([(None, 4, LOST)] * 3, "stop", FAILED),
        ([(137, 4), (137, 4), (None, 4, ENDED_FROM_OUTSIDE), (STOPPED_AND_SAVED, 4)], "requeue", STOPPED_AND_SAVED),
        ([(137, 4), (137, 4), (None, 4, ENDED_FROM_OUTSIDE), (137, 4)], "stop", 137),
        ([(None, 4, ENDED_FROM_OUTSIDE)] * 40 + [(STOPPED_AND_SAVED, 4)], "requeue", STOPPED_AND_SAVED),
        ([(137, 4), (137, 4), (137, 4), (DONE, 9)], "done", DONE),
    ],
)
def test_decisions(ends, action, code):
    decision = decide(history(*ends))
    assert (decision.action, decision.code) == (action, code)
    assert decision.reason


@pytest.mark.parametrize("codes", itertools.product((STOPPED_AND_SAVED, ABORTED, KILLED, RETRY, FAILED), repeat=2))
@pytest.mark.parametrize("step", [-1, 12])
def test_no_mixture_of_codes_at_one_step_goes_on_for_ever(codes, step):
    ends: list[tuple] = []
    for code in itertools.islice(itertools.cycle(codes), 40):
        ends.append((code, step))
        if decide(history(*ends)).action == "stop":
            break
    assert len(ends) <= MAX_STARTS


def test_a_mixture_is_told_with_all_its_ends():
    log = "runs/x/logs/distill-7-*.log"
    decision = decide(history((STOPPED_AND_SAVED, 4), (ABORTED, 4), (STOPPED_AND_SAVED, 4), (ABORTED, 4)), log)
    ends = "it ended 4 times in a row (stopped and saved, signal 6) without getting beyond step 4"
    assert decision.reason == f"{ends}. {log} ends with what happened"


def test_a_crash_loop_ends_and_says_where():
    attempts = history(*[(139, 12)] * MAX_CRASHES)
    assert decide(attempts).reason.startswith("it ended 3 times in a row (signal 11) without getting beyond step 12.")
    assert "beyond its start" in decide(history(*[(1, -1)] * MAX_CRASHES)).reason


def test_each_end_has_its_own_word():
    def told(*end):
        return decide(history(end)).reason

    assert told(STOPPED_AND_SAVED, 4) == "stopped and saved at step 4"
    assert told(STOPPED_AND_SAVED, 4, NO_VERDICT) == "told to stop; nothing was saved beyond step 4"
    assert "exit code 75 (hung: a rank stood still" in told(STOPPED_AND_SAVED, 4, HUNG)
    assert "saved" not in told(STOPPED_AND_SAVED, 4, HUNG) and "try 2 of 3" in told(STOPPED_AND_SAVED, 4, HUNG)
    assert "exit code 74 (reading or writing failed in a way that may pass)" in told(RETRY, 4)
    assert "exit code 1 (the preflight failed)" in told(FAILED, 4, PREFLIGHT)
    assert "a node died" in told(None, 4, LOST)


def test_stops_without_a_step_between_name_the_time_limit():
    reason = decide(history(*[(STOPPED_AND_SAVED, 4)] * MAX_STARTS)).reason
    assert reason.startswith("it was stopped 4 times in a row without a step between: the time limit is shorter than")


def test_what_cannot_be_used_names_the_file_that_says_why():
    reason = decide(history((BAD_INPUT, -1)), "runs/x/logs/distill-7-*.log").reason
    assert reason.endswith("runs/x/logs/distill-7-*.log ends with what is wrong")
