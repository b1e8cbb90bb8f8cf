"""Start again, or stop: every way a job ends, and that crashes do not go on for ever."""

import json

import pytest

from distill_engine.cluster.exit_codes import BAD_INPUT, DONE, STOPPED_AND_SAVED
from launcher.requeue import MAX_CRASHES, Attempt, decide, newest_step, read_attempts, record_attempt


def history(*ends: tuple[int, int]) -> list[Attempt]:
    return [Attempt("7", code, step) for code, step in ends]


@pytest.mark.parametrize(
    ("ends", "action", "code"),
    [
        ([(DONE, 9)], "done", DONE),
        ([(STOPPED_AND_SAVED, 4)], "requeue", STOPPED_AND_SAVED),
        ([(STOPPED_AND_SAVED, 4), (STOPPED_AND_SAVED, 8)] * 9, "requeue", STOPPED_AND_SAVED),
        ([(BAD_INPUT, -1)], "stop", BAD_INPUT),
        ([(2, -1)], "stop", 2),
        ([(STOPPED_AND_SAVED, 4), (2, 4)], "requeue", 2),  # the command line was right before
        ([(137, -1)], "requeue", 137),
        ([(137, 4), (137, 4)], "requeue", 137),
        ([(137, 4), (1, 4), (143, 4)], "stop", 143),
        ([(137, 4), (137, 4), (137, 6)], "requeue", 137),
        ([(137, 4), (137, 4), (STOPPED_AND_SAVED, 4), (137, 4)], "requeue", 137),
        ([(STOPPED_AND_SAVED, 4)] * 4, "stop", STOPPED_AND_SAVED),
        ([(137, 4), (137, 4), (137, 4), (DONE, 9)], "done", DONE),
    ],
)
def test_decisions(ends, action, code):
    decision = decide(history(*ends))
    assert (decision.action, decision.code) == (action, code)
    assert decision.reason


def test_a_crash_loop_ends_and_says_where():
    attempts = history(*[(139, 12)] * MAX_CRASHES)
    assert decide(attempts).reason == "it ended 3 times in a row (signal 11) without getting beyond step 12"
    assert "beyond its start" in decide(history(*[(1, -1)] * MAX_CRASHES)).reason


def test_stops_without_a_step_between_name_both_causes():
    reason = decide(history(*[(STOPPED_AND_SAVED, 4)] * (MAX_CRASHES + 1))).reason
    assert reason.startswith("it was stopped 4 times in a row without a step between: the time limit is shorter than")
    assert reason.endswith("or, if RUN_DIR/hang has new files, a rank that stands still: see them")


def test_progress_is_a_newer_complete_checkpoint(tmp_path):
    assert newest_step(tmp_path) == -1
    for name in ("step-00000012", "step-00000009.3", ".tmp-step-00000099", "step-latest", ".trash-step-00000200"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 12


def test_attempts_are_kept_and_those_of_other_jobs_do_not_count(tmp_path):
    record_attempt(tmp_path, Attempt("6", 137, 4))
    (tmp_path / "logs" / "attempts.jsonl").open("a").write('{"job": "7", "co\n[]\n')
    assert record_attempt(tmp_path, Attempt("7", 137, 4)) == [Attempt("7", 137, 4)]
    assert [one.job for one in read_attempts(tmp_path)] == ["6", "7"]
    assert json.loads((tmp_path / "logs" / "attempts.jsonl").read_text().splitlines()[-1])["code"] == 137
