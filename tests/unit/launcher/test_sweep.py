"""The table at the end of a sweep."""

import json

from distill_engine.cluster.exit_codes import BAD_INPUT, DONE, STOPPED_AND_SAVED
from launcher.attempts import Start, record_end
from launcher.requeue import ENDED_FROM_OUTSIDE
from launcher.sweep import write_table


def test_best_first_and_unfinished_last(tmp_path):
    for name, value, setting in (("0", 9.5, "a=1"), ("1", None, "a=2"), ("2", 7.25, "a=3 | b")):
        run = tmp_path / name
        run.mkdir()
        (run / "settings.txt").write_text(setting + "\n")
        if value is not None:
            line = {"kind": "valid", "step": 4, "seconds": 1.0, "values": {"valid/ppl": value}}
            (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "elsewhere").mkdir()
    text = write_table(tmp_path)
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines()]
    assert rows == ["run", rows[1], "2", "0", "1"]
    assert text.count(" begun ") == 3, "no start has ended"
    assert "7.25" in text.splitlines()[2] and "a=3 \\| b" in text
    assert (tmp_path / "table.md").read_text() == text + "\n"


def test_failed_finished_waiting_and_not_started_are_told_apart(tmp_path):
    ends = {"0": [DONE], "1": [BAD_INPUT], "2": [1, 1, 1], "3": [STOPPED_AND_SAVED], "4": [1], "5": [], "10": [1, DONE]}
    for name, codes in ends.items():
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / name / "settings.txt").write_text(f"seed={name}\n")
        lines = [{"job": "7", "code": code, "step": -1} for code in codes]
        (tmp_path / name / "logs" / "attempts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (tmp_path / "grid.txt").write_text("".join(f"seed={number}\n" for number in range(12)))
    cells = [[cell.strip() for cell in line.split("|")] for line in write_table(tmp_path).splitlines()[2:]]
    states = {row[1]: row[5] for row in cells}
    assert states == {
        "0": "finished", "1": f"failed: code {BAD_INPUT}", "2": "failed: code 1", "3": "goes on", "4": "goes on",
        "5": "begun", "10": "finished", **dict.fromkeys(("6", "7", "8", "9", "11"), "not started"),
    }  # fmt: skip
    assert {row[1]: row[6] for row in cells} == {str(number): f"seed={number}" for number in range(12)}


def test_a_cancelled_run_is_not_said_to_go_on(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "settings.txt").write_text("seed=1\n")
    record_end(tmp_path / "0", Start("7_0", 0), None, ENDED_FROM_OUTSIDE)
    assert "| ended from outside |" in write_table(tmp_path)


def test_a_run_that_was_submitted_anew_is_what_the_new_job_made_of_it(tmp_path):
    (tmp_path / "0" / "logs").mkdir(parents=True)
    (tmp_path / "0" / "settings.txt").write_text("seed=1\n")
    lines = [{"job": "7", "code": 1, "step": -1}] * 3 + [{"job": "9", "code": DONE, "step": 5}]
    (tmp_path / "0" / "logs" / "attempts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert "| finished |" in write_table(tmp_path)
