"""Slurm's commands: what they are given, what their answers mean, what happens when they fail."""

import pytest

from launcher import slurm
from launcher.slurm import JobState, SlurmError


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"}, "12_2"),
        ({}, ""),
    ],
)
def test_an_array_element_is_requeued_by_its_own_id(environment, job):
    assert slurm.own_job_id(environment) == job


def test_submit_gives_the_job(fake_slurm):
    fake_slurm.answer("sbatch", ("some site's banner\n123;cluster\n", 0))
    assert slurm.submit(["--nodes=2", "a b; $(touch x).sh"]) == "123"
    assert fake_slurm.calls == [["sbatch", "--parsable", "--nodes=2", "a b; $(touch x).sh"]]


@pytest.mark.parametrize("job", ["", "12; rm -rf /", "--me", "12_", "1\n2"])
def test_what_is_no_job_id_never_reaches_a_command(fake_slurm, job):
    fake_slurm.answer("scancel", ("", 0))
    with pytest.raises(SlurmError, match="no Slurm job id"):
        slurm.cancel(job)
    assert fake_slurm.calls == []


def test_requeue_waits_for_a_controller_that_is_away(fake_slurm):
    fake_slurm.answer("scontrol", ("slurm_requeue: Unable to contact slurm controller (connect failure)", 1), ("", 0))
    slurm.requeue("12_2", pause_seconds=0)
    assert fake_slurm.calls == [["scontrol", "requeue", "12_2"]] * 2


def test_requeue_gives_up_when_told_no(fake_slurm):
    fake_slurm.answer("scontrol", ("Requested operation is presently disabled", 1))
    with pytest.raises(SlurmError, match="presently disabled"):
        slurm.requeue("12", pause_seconds=0)
    assert len(fake_slurm.calls) == 1


def test_state_comes_from_the_queue_then_from_the_accounting(fake_slurm):
    fake_slurm.answer("squeue", ("PENDING|Priority|0:00\n", 0))
    assert slurm.job_state("12") == JobState("PENDING", "Priority", "0:00")
    fake_slurm.answer("squeue", ("slurm_load_jobs error: Invalid job id specified", 1))
    fake_slurm.answer("sacct", ("12|COMPLETED|0:0|01:02:03\n", 0))
    assert slurm.job_state("12") == JobState("COMPLETED", "exit code 0:0", "01:02:03")
    fake_slurm.answer("sacct", ("Slurm accounting storage is disabled", 1))
    assert slurm.job_state("12") is None


def test_without_slurm_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="sbatch is not on this machine"):
        slurm.submit(["x.sh"])
