"""Slurm's commands: what they are given, what their answers mean, what happens when they fail."""

import pytest

from launcher import slurm
from launcher.slurm import JobState, SlurmError


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


AWAY = ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", 1)
RUNNING, REQUEUED, ENDING = ("RUNNING             2           ", 0), ("COMPLETING  3", 0), ("COMPLETING  2", 0)


@pytest.mark.parametrize(
    ("said", "fate"),
    [
        (RUNNING, "running"),
        (("SUSPENDED 2\n", 0), "running"),
        (REQUEUED, "requeued"),  # its script still runs, so Slurm calls it completing
        (("PENDING 2", 0), "requeued"),
        (ENDING, "ending"),
        (("CANCELLED 2", 0), "ending"),
        (AWAY, None),
        (("", 0), None),
        (("some site's banner here", 0), None),
    ],
)
def test_what_becomes_of_a_job_is_told_by_its_state_and_its_restarts(fake_slurm, said, fate):
    fake_slurm.answer("squeue", said)
    assert slurm.fate("12_2", 2) == fate


@pytest.mark.parametrize(
    "refusal",
    [
        "slurm_requeue: Unable to contact slurm controller (connect failure)",
        "Unexpected message received for job 12",
        "Socket timed out on send/recv operation",
        "",
    ],
)
def test_requeue_waits_for_a_controller_that_is_away_whatever_the_command_says(fake_slurm, refusal):
    fake_slurm.answer("scontrol", *[(refusal, 1)] * 9, ("", 0))
    fake_slurm.answer("squeue", *[AWAY] * 9, REQUEUED)
    slurm.requeue("12_2", 2, pause_seconds=0)
    assert [call for call in fake_slurm.calls if call[0] == "scontrol"] == [["scontrol", "requeue", "12_2"]] * 10


def test_requeue_believes_the_state_not_the_command(fake_slurm):
    fake_slurm.answer("scontrol", ("", 0))  # says yes
    fake_slurm.answer("squeue", RUNNING, RUNNING, REQUEUED)
    slurm.requeue("12", 2, pause_seconds=0)
    assert len([call for call in fake_slurm.calls if call[0] == "scontrol"]) == 3
    fake_slurm.answer("scontrol", ("Job is pending execution", 1))  # says no: somebody else was quicker
    slurm.requeue("12", 2, pause_seconds=0)


def test_requeue_gives_up_when_a_controller_that_answers_lets_the_job_run(fake_slurm):
    fake_slurm.answer("scontrol", ("Requested operation is presently disabled", 1))
    fake_slurm.answer("squeue", RUNNING)
    with pytest.raises(SlurmError, match="presently disabled"):
        slurm.requeue("12", 2, pause_seconds=0)
    assert len([call for call in fake_slurm.calls if call[0] == "scontrol"]) == 4


def test_requeue_gives_up_on_a_controller_that_never_comes_back_and_on_a_job_that_is_cancelled(fake_slurm):
    fake_slurm.answer("scontrol", ("Unable to contact", 1))
    fake_slurm.answer("squeue", AWAY)
    with pytest.raises(SlurmError, match="Unable to contact"):
        slurm.requeue("12", 2, patience_seconds=0.5, pause_seconds=0.1)
    fake_slurm.answer("squeue", ENDING)
    with pytest.raises(SlurmError, match="ended from outside"):
        slurm.requeue("12", 2, pause_seconds=0)


def test_a_job_avoids_bad_nodes_and_those_it_avoided_before(fake_slurm):
    fake_slurm.answer("squeue", ("gpu|n[7-8]", 0))
    nodes = [f"n{number}|idle\n" for number in range(1, 9)] + ["n9|down*\n"]
    fake_slurm.answer("sinfo", ("".join(nodes), 0))
    fake_slurm.answer("scontrol", ("", 0))
    slurm.exclude("12", ["n2"], needed=5)
    assert fake_slurm.calls[-1] == ["scontrol", "update", "jobid=12", "ExcNodeList=n2,n7,n8"]
    with pytest.raises(SlurmError, match="partition gpu would have 5 nodes left, the job needs 6"):
        slurm.exclude("12", ["n2"], needed=6)  # it would wait for ever
    fake_slurm.answer("squeue", ("gpu|", 0))
    slurm.exclude("12", ["n2"], needed=7)
    assert fake_slurm.calls[-1] == ["scontrol", "update", "jobid=12", "ExcNodeList=n2"]


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
    with pytest.raises(SlurmError, match="scontrol is not on this machine"):
        slurm.requeue("12", 0)
