"""How starts end, and whether there is another one: who signals whom, bad nodes, what a job is not given."""

import json
import shutil
import subprocess

import pytest

from distill_engine.cluster.exit_codes import BAD_INPUT, DONE, FAILED, STOPPED_AND_SAVED, USAGE
from launcher.attempts import read_attempts
from launcher.requeue import ENDED_FROM_OUTSIDE, NO_VERDICT, PREFLIGHT, Attempt

LONG_AGO = {"SLURM_JOB_START_TIME": "1"}  # so that no warning of the time limit is too early


@pytest.fixture
def waiting(slurm, tools, tmp_path):
    """A job whose ranks wait to be told what to do: (job, run folder, folder of the stand-in)."""
    folder, seen = tmp_path / "run", tmp_path / "seen"
    job = slurm.sbatch(folder, **slurm.stand_in(seen, codes=[DONE], rank="all", wait=True), **LONG_AGO)
    tools.wait_until(lambda: len(list(seen.glob("start-0-*"))) == 2, "the start", tell=lambda: slurm.said(job))
    return job, folder, seen


def test_a_cancelled_start_leaves_a_line(slurm, tools, waiting):
    job, folder, _ = waiting
    slurm.command("scancel", job)
    assert slurm.ended(job)["JobState"] == "CANCELLED"
    tools.wait_until(lambda: "ended from outside" in slurm.said(job), "the last word", 60)
    (end,) = read_attempts(folder)
    assert (end.job, end.reason) == (job, ENDED_FROM_OUTSIDE) and "the job is cancelled" in slurm.said(job)


def test_a_start_requeued_from_outside_leaves_a_line_and_counts_for_nothing(slurm, tools, waiting):
    job, folder, seen = waiting
    slurm.command("scontrol", "requeue", job)

    def second_start() -> bool:
        slurm.hurry(job)
        return (seen / "start-1-rank-0.json").exists()

    tools.wait_until(second_start, "the second start", tell=lambda: slurm.said(job))
    assert [one.reason for one in read_attempts(folder)] == [ENDED_FROM_OUTSIDE]
    (seen / "go").touch()
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), slurm.said(job)
    assert "the job is requeued" in slurm.said(job) and len(read_attempts(folder)) == 2


def test_a_signal_for_the_batch_shell_reaches_the_ranks_which_save_and_are_started_again(slurm, tools, waiting):
    """What --signal=B:USR1@N does."""
    job, folder, seen = waiting
    slurm.command("scancel", "--batch", "--signal=USR1", job)
    tools.wait_until(lambda: read_attempts(folder), "the end of the first start", 60, lambda: slurm.said(job))
    assert read_attempts(folder) == [Attempt(job, STOPPED_AND_SAVED, -1)], slurm.said(job)
    assert len(list(seen.glob("saved-0-*"))) == 2, "both ranks were told, once"
    (seen / "go").touch()
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), slurm.said(job)
    assert tools.attempts(folder) == [STOPPED_AND_SAVED, DONE]


def test_a_signal_for_the_batch_shell_during_the_preflight_is_no_failure(slurm, tools, tmp_path):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    env = slurm.stand_in(seen, codes=[DONE], rank="all") | {"PREFLIGHT": "1"} | LONG_AGO
    (seen / "slow").touch()
    job = slurm.sbatch(folder, "--nodes=1", **env)
    tools.wait_until(lambda: (seen / "preflight-0").exists(), "the preflight", tell=lambda: slurm.said(job))
    slurm.command("scancel", "--batch", "--signal=USR1", job)
    (seen / "go").touch()
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), slurm.said(job)
    assert read_attempts(folder) == [Attempt(job, STOPPED_AND_SAVED, -1, NO_VERDICT), Attempt(job, DONE, -1)]
    assert not list(seen.glob("start-0-*")) and "requeue: told to stop; nothing was saved" in slurm.said(job)


def test_a_warning_longer_than_the_limit_is_passed_on_at_half_of_it(slurm, tools, tmp_path):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    env = slurm.stand_in(seen, codes=[DONE], rank="all", wait=True) | {"PREFLIGHT": "1"}
    job = slurm.sbatch(folder, "--nodes=1", "--time=2", "--signal=B:USR1@600", **env)
    tools.wait_until(lambda: "more than half of the limit was left" in slurm.said(job), "Slurm's warning", 90)
    tools.wait_until(lambda: list(seen.glob("saved-0-*")), "the ranks' end", 100, lambda: slurm.said(job))
    (saved,) = seen.glob("saved-0-*")
    begun = json.loads((seen / "start-0-rank-0.json").read_text())["environ"]
    limit = int(begun["SLURM_JOB_END_TIME"]) - int(begun["SLURM_JOB_START_TIME"])
    assert limit == 120 and saved.stat().st_mtime - int(begun["SLURM_JOB_START_TIME"]) >= 59
    (seen / "go").touch()
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), slurm.said(job)
    assert tools.attempts(folder) == [STOPPED_AND_SAVED, DONE]


def test_a_bad_node_is_excluded_and_the_job_goes_on_elsewhere(slurm, tools, tmp_path):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    env = slurm.stand_in(seen, codes=[DONE], rank="all") | {"PREFLIGHT": "1"}
    (seen / "silent-0").touch()
    job = slurm.sbatch(folder, "--nodes=1", **env)
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), slurm.said(job)
    assert read_attempts(folder) == [Attempt(job, FAILED, -1, PREFLIGHT), Attempt(job, DONE, -1)]
    bad = facts["ExcNodeList"]
    assert bad in ("n1", "n2") and facts["NodeList"] != bad
    assert f"preflight: {bad} said nothing" in slurm.said(job) and f"{bad} excluded from" in slurm.said(job)


def test_a_failed_preflight_is_bounded_and_no_job_is_left_without_nodes(slurm, tools, tmp_path):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    env = slurm.stand_in(seen, codes=[DONE], rank="all") | {"PREFLIGHT": "1"}
    for start in range(9):
        (seen / f"silent-{start}").touch()
    job = slurm.sbatch(folder, **env)
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "1:0", "2"), slurm.said(job)
    assert facts["ExcNodeList"] == "(null)" and "none of the 2 nodes answered" in slurm.said(job)
    assert tools.attempts(folder) == [FAILED] * 3
    assert "it ended 3 times in a row (exit code 1 (the preflight failed))" in slurm.said(job)


def test_stops_and_crashes_in_turn_at_one_step_end(slurm, tools, tmp_path):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    codes = [STOPPED_AND_SAVED, 134] * 5
    job = slurm.sbatch(folder, "--nodes=1", **slurm.stand_in(seen, codes=codes, rank="all"))
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "134:0", "3"), slurm.said(job)
    assert tools.attempts(folder) == codes[:4]
    assert "it ended 4 times in a row (stopped and saved, signal 6) without getting beyond" in slurm.said(job)


@pytest.mark.parametrize("exported", ["NONE", "RECIPE"])
def test_the_ranks_know_where_the_verdict_goes_whatever_sbatch_exports(slurm, tools, tmp_path, exported):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    env = slurm.stand_in(seen, codes=[DONE], rank="all")
    # the job's own variables come with the script here, as from a site's profile
    script = tmp_path / "site.sh"
    names = {**env, "PREFLIGHT": "0", "RUN_DIR": folder, "DS_CONFIG": "ds_configs/zero2_fp32.json"}
    names |= {"RECIPE": "recipes/demo.yaml", "DISTILL_HOME": tools.ROOT, "MASTER_ADDR": "127.0.0.1"}
    settings = "".join(f"export {name}='{value}'\n" for name, value in names.items())
    script.write_text(f"#!/bin/bash\n{settings}source '{tools.ROOT}/slurm/distill_bb3b.sh'\n")
    job = slurm.sbatch(folder, f"--export={exported}", "--requeue", str(script))
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "0"), slurm.said(job)
    assert read_attempts(folder) == [Attempt(job, DONE, -1)]


def test_a_wrong_option_ends_the_job_at_once_with_the_code_for_it(slurm, tools, tmp_path):
    folder = tmp_path / "run"
    job = slurm.sbatch(folder, options=("--no-such-option",))
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", f"{USAGE}:0", "0"), slurm.said(job)
    assert "stop: the command line cannot be used" in slurm.said(job) and tools.attempts(folder) == [USAGE]
    logs = "".join(log.read_text() for log in (folder / "logs").glob(f"distill-bb3b-{job}-*.log"))
    assert "unrecognized arguments: --no-such-option" in logs
    assert f"{folder}/logs/distill-bb3b-{job}-*.log ends with what is wrong" in slurm.said(job)


@pytest.mark.parametrize("name", ["distill_bb3b.sh", "sweep.sh", "evaluate.sh", "share.sh"])
def test_a_copied_script_says_how_to_name_the_repository(slurm, tools, tmp_path, name):
    script = tmp_path / name
    shutil.copy(tools.ROOT / "slurm" / name, script)
    words = ["sbatch", "--parsable", "--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1", "--nodes=1"]
    flags = ["--array=0", f"--output={tmp_path}/out"] if name == "sweep.sh" else [f"--output={tmp_path}/out"]
    done = subprocess.run([*words, *flags, script], env=slurm.env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert slurm.ended(done.stdout.strip())["ExitCode"] == f"{BAD_INPUT}:0"
    said = (tmp_path / "out").read_text()
    assert "DISTILL_HOME=FOLDER sbatch" in said and "No such file" not in said
