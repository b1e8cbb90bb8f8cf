"""An error that only one rank has is said first, with its place, and ends the job at once, whatever the group does."""

import re
import signal
import socket
from pathlib import Path

import psutil
import pytest

from distill_engine.cluster.exit_codes import DONE, FAILED, HUNG, RETRY, STOPPED_AND_SAVED, read_verdict

HOSTILE = Path(__file__).with_name("hostile_rank.py")


@pytest.fixture
def start(program, base_recipe, write_recipe, fp32, tmp_path):
    """Start two ranks in a hostile world; the verdict is tmp_path/verdict."""

    def started(hostile: str, *settings: str, cold: bool = False, **env: str):
        arguments = ["--recipe", write_recipe(base_recipe()), "--ds_config", fp32, "--run-dir", tmp_path / "run"]
        for setting in settings:
            arguments += ["--set", setting]
        own = {"HOSTILE": hostile, "DISTILL_VERDICT": str(tmp_path / "verdict")} | env
        return program.start(*arguments, ranks=2, env=own, script=HOSTILE, cold=cold)

    return started


@pytest.mark.parametrize(
    ("hostile", "fault", "code", "error"),
    [
        ("blocked_group", "enospc:in_step@1#3", RETRY, "OSError: [Errno 28] No space left on device"),
        ("blocked_group,defect", "", FAILED, "KeyError: 'no such head'"),
    ],
    ids=["a full disk", "a defect"],
)
def test_the_error_of_one_rank_is_said_first_and_ends_the_job(start, tmp_path, hostile, fault, code, error):
    # once by DeepSpeed's own launcher; `ended` waits for minutes, not for the half hour of a collective
    ended = start(hostile, cold=code == RETRY, DISTILL_FAULT=fault).ended()
    assert ended.code in (code, FAILED), ended.said  # DeepSpeed's launcher may tell of either rank
    head = re.search(r"^\[rank 1 of 2 on (\S+), process \d+\] \d{4}-\S+: failed while it was (.*)$", ended.err, re.M)
    assert head, ended.said
    assert head[1] == socket.gethostname()
    assert head[2] == f"in phase 'data' of optimizer step 3 (exit code {code})"
    after = ended.err[head.end() :]
    assert after.startswith("\nTraceback (most recent call last):\n") and error in after
    said = read_verdict(tmp_path / "verdict")
    assert said[0] == code and said[1].startswith(f"rank 1 of 2 on {head[1]}: {error.split(':')[0]}"), said


def test_a_group_that_does_not_end_does_not_keep_a_finished_run(start, tmp_path):
    ended = start("blocked_group").ended().well()
    assert ended.code == DONE and read_verdict(tmp_path / "verdict") == (DONE, "")


def test_a_rank_that_never_comes_back_from_loading_is_found(start, tmp_path):
    ended = start("blocked_load", "stop.hang_seconds=3", "student.init=random").ended()
    assert ended.code == STOPPED_AND_SAVED, ended.said
    assert read_verdict(tmp_path / "verdict") == (STOPPED_AND_SAVED, HUNG)
    assert re.search(r"rank 1 \(\S+\) is behind: .* it was loading and sharding the teacher", ended.err), ended.err
    assert "in for_ever" in (tmp_path / "run" / "hang" / "rank_1.txt").read_text()


def test_ctrl_c_under_deepspeed_saves_however_long_the_step_takes(start, tmp_path):
    """The terminal's signal, those of both of DeepSpeed's processes, and the end of the launcher: one stop."""
    mark = str(tmp_path / "step_3_of_")
    run = start("awaited_stop", cold=True, STEP_3=mark)
    run.until(lambda: all(Path(mark + rank).exists() for rank in "01"), "step 3 of both ranks")
    launcher = psutil.Process(run.process.pid)
    family = [launcher, *launcher.children(recursive=True)]
    ranks = [one for one in family if str(HOSTILE) in one.cmdline()[:4]]
    assert len(ranks) == 2, [one.cmdline() for one in family]
    for process in family:  # as a terminal does
        process.send_signal(signal.SIGINT)
    run.ended()
    psutil.wait_procs(ranks, timeout=120)
    assert not [rank for rank in ranks if rank.is_running()]
    assert read_verdict(tmp_path / "verdict") == (STOPPED_AND_SAVED, ""), run.said()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")][-1:] == ["step-00000003"]
