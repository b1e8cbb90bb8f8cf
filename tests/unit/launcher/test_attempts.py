"""attempts.jsonl: a line for each start, whoever ended it, and what the bounds make of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill_engine.checkpoint.files import newest_step
from distill_engine.cluster.exit_codes import FAILED, STOPPED_AND_SAVED
from launcher.attempts import Start, begin, own_start, read_attempts, record_end, record_start
from launcher.requeue import ENDED_FROM_OUTSIDE, LOST, Attempt

ROOT = Path(__file__).parents[3]


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "logs" / "attempts.jsonl").read_text().splitlines()]


def environment(start: int) -> dict[str, str]:
    return {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(start), "SLURM_JOB_NODELIST": "gpu[01-02]"}


@pytest.mark.parametrize(
    ("environment", "start"),
    [
        ({"SLURM_JOB_ID": "12"}, Start("12", 0)),
        ({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "3"}, Start("12", 3)),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"}, Start("12_2", 0)),
        ({}, Start("", 0)),
    ],
)
def test_an_array_element_is_requeued_by_its_own_id(environment, start):
    assert own_start(environment) == start


def test_progress_is_a_newer_complete_checkpoint(tmp_path):
    assert newest_step(tmp_path) == -1
    for name in ("step-00000012", "step-00000009.3", ".tmp-step-00000099", "step-latest", ".trash-step-00000200"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 12


def test_attempts_are_kept_and_those_of_other_jobs_do_not_count(tmp_path):
    record_end(tmp_path, Start("6", 0), 137)
    broken = '{"job": "7", "co\n[]\n{"job": [], "start": {}, "code": 1, "step": 4}\n{"job": "7", "code": 1}\n'
    (tmp_path / "logs" / "attempts.jsonl").open("a").write(broken)
    assert record_end(tmp_path, Start("7", 0), 137) == [Attempt("7", 137, -1)]
    assert [one.job for one in read_attempts(tmp_path)] == ["6", "7"]


def test_lines_of_an_older_version_count(tmp_path):
    (tmp_path / "logs").mkdir()
    old = json.dumps({"job": "7", "code": 137, "step": -1}) + "\n"
    (tmp_path / "logs" / "attempts.jsonl").write_text(old * 2)
    assert record_end(tmp_path, Start("7", 2), 137) == [Attempt("7", 137, -1)] * 3


def test_a_start_is_written_down_before_anything_can_happen_to_it(tmp_path):
    assert begin(tmp_path, environment(0)) == 0
    (line,) = lines(tmp_path)
    assert (line["job"], line["start"], line["nodes"]) == ("7", 0, "gpu[01-02]") and "code" not in line
    assert read_attempts(tmp_path) == []


def test_a_start_without_an_end_is_closed_by_the_next_with_the_step_it_reached(tmp_path):
    record_start(tmp_path, Start("7", 0), "n1")
    record_start(tmp_path, Start("6", 0), "n1")  # another job's is not ours to judge
    (tmp_path / "checkpoints" / "step-00000012").mkdir(parents=True)
    assert record_start(tmp_path, Start("7", 1), "n2") == [Attempt("7", None, 12, LOST)]
    assert [(line["job"], line["start"], "code" in line) for line in lines(tmp_path)] == [
        ("7", 0, False), ("6", 0, False), ("7", 0, True), ("7", 1, False)
    ]  # fmt: skip


def test_what_the_ranks_said_in_the_end_replaces_what_was_known_at_slurms_signal(tmp_path):
    record_start(tmp_path, Start("7", 0), "n1")
    record_end(tmp_path, Start("7", 0), None, ENDED_FROM_OUTSIDE)
    assert read_attempts(tmp_path) == [Attempt("7", None, -1, ENDED_FROM_OUTSIDE)]
    record_end(tmp_path, Start("7", 0), STOPPED_AND_SAVED, ENDED_FROM_OUTSIDE)
    assert read_attempts(tmp_path) == [Attempt("7", STOPPED_AND_SAVED, -1, ENDED_FROM_OUTSIDE)]


def test_starts_that_die_with_their_nodes_are_bounded_too(tmp_path, capsys):
    assert [begin(tmp_path, environment(start)) for start in range(4)] == [0, 0, 0, FAILED]
    assert "it ended 3 times in a row (its end is on no record" in capsys.readouterr().err
    assert begin(tmp_path, environment(4)) == 0, "a person who requeues it is obeyed"
    (tmp_path / "checkpoints" / "step-00000012").mkdir(parents=True)
    assert [begin(tmp_path, environment(start)) for start in range(5, 7)] == [0, 0], "a new step counts anew"


def test_preemptions_are_no_fault_of_the_job(tmp_path):
    for start in range(20):
        assert begin(tmp_path, environment(start)) == 0
        record_end(tmp_path, Start("7", start), STOPPED_AND_SAVED, ENDED_FROM_OUTSIDE)


def test_a_disk_that_takes_no_line_keeps_nobody_from_starting(tmp_path, capsys):
    (tmp_path / "logs").write_text("no folder")
    assert begin(tmp_path, environment(0)) == 0
    assert "this start cannot be recorded" in capsys.readouterr().err


def test_the_job_scripts_two_calls(tmp_path):
    run_dir = tmp_path / "a b; $(touch pwned)"
    for what in ("begin", "ending"):
        command = [sys.executable, "-m", "launcher.attempts", what, str(run_dir)]
        subprocess.run(command, cwd=ROOT, env=os.environ | environment(0), check=True, timeout=60)
    assert read_attempts(run_dir) == [Attempt("7", None, -1, ENDED_FROM_OUTSIDE)]
