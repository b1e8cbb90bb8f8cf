"""What a cluster does to a job: preemption, dead nodes, no controller, crash loops; and names that are traps."""

import json
import os
import signal

import psutil

from distill_engine.cluster.exit_codes import BAD_INPUT, DONE, STOPPED_AND_SAVED
from launcher.attempts import read_attempts
from launcher.requeue import ENDED_FROM_OUTSIDE, LOST

TRAP = "x $(touch pwned) `touch pwned` 'q\" ;&|*?~ -"


def test_preempted_then_its_node_dies_it_ends_like_an_undisturbed_run(slurm, tools, quiet_run, tmp_path):
    folder = tmp_path / "run"
    job = slurm.sbatch(folder)

    def said() -> str:
        return slurm.said(job) + "".join(one.read_text(errors="replace")[-2000:] for one in folder.glob("logs/*.log"))

    tools.wait_until(lambda: tools.last_step(folder) >= 2, "step 2", tell=said)
    slurm.command("scontrol", "requeue", job)  # what a preemption does: TERM, KillWait, KILL

    def started_again(times: str) -> bool:
        slurm.hurry(job)
        facts = slurm.job(job)
        return facts["Restarts"] == times and facts["JobState"] == "RUNNING"

    tools.wait_until(lambda: started_again("1"), "the second start", tell=said)
    reached = tools.last_step(folder)
    tools.wait_until(lambda: tools.last_step(folder) > max(reached, 4), "a step of it", tell=said)
    assert (folder / "checkpoints").is_dir() and "resumed after step" in said()
    power_cut(slurm, tools.ranks_of(folder)[1])
    slurm.command("scontrol", "update", "nodename=n2", "state=down", "reason=power")
    tools.wait_until(lambda: slurm.state(job) != "RUNNING", "the end of the second start", tell=said)
    slurm.start_daemon("slurmd -N n2")
    slurm.command("scontrol", "update", "nodename=n2", "state=resume")
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), said()
    ends = read_attempts(folder)
    assert len(ends) == int(facts["Restarts"]) + 1 >= 3 and ends[-1].code == DONE, "every start has left a line"
    assert {one.reason for one in ends[:-1]} <= {ENDED_FROM_OUTSIDE, LOST}, ends
    assert tools.measured(folder) == tools.measured(quiet_run)


def power_cut(slurm, rank: psutil.Process) -> None:
    """A node's daemon, its steps and its rank, at once."""
    step = rank.parent()
    assert step is not None and "slurmstepd" in "".join(step.cmdline())
    slurm.stop_daemon("slurmd -N n2", signal.SIGKILL)
    for process in (step, rank):
        process.send_signal(signal.SIGKILL)


def test_a_rank_that_ends_badly_ends_its_step_and_three_times_without_progress_the_job(slurm, tools, tmp_path):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    job = slurm.sbatch(folder, **slurm.stand_in(seen, codes=[3], rank=1, verdict=False))
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "143:0", "2"), slurm.said(job)
    assert tools.attempts(folder) == [143] * 3, "srun tells of the signal with which it ended the others"
    assert "Exited with exit code 3" in slurm.said(job)
    assert "it ended 3 times in a row (signal 15) without getting beyond its start" in slurm.said(job)
    others = [json.loads(file.read_text())["pid"] for file in seen.glob("start-*-rank-0.json")]
    assert len(others) == 3 and not any(psutil.pid_exists(pid) for pid in others), "the rank that waited was ended"


def test_a_controller_that_is_away_when_a_job_wants_to_go_on_is_asked_again(slurm, tools, tmp_path):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    job = slurm.sbatch(folder, **slurm.stand_in(seen, codes=[STOPPED_AND_SAVED, DONE], rank="all", wait=True))
    tools.wait_until(lambda: (seen / "start-0-rank-0.json").exists(), "the start", tell=lambda: slurm.said(job))
    slurm.stop_daemon("slurmctld")
    try:
        (seen / "go").touch()
        tools.wait_until(lambda: "the controller does not answer" in slurm.said(job), "a try in vain", 120)
        assert tools.attempts(folder) == [STOPPED_AND_SAVED]
    finally:
        slurm.start_daemon("slurmctld")
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "1"), slurm.said(job)
    assert "requeue failed" not in slurm.said(job) and tools.attempts(folder) == [STOPPED_AND_SAVED, DONE]


def test_names_that_are_traps_stay_names(slurm, tools, tmp_path):
    """Run folder, recipe, configuration, grid line and job name; the script runs in a folder of its own."""
    seen, trap = tmp_path / "seen", tmp_path / TRAP
    trap.mkdir()
    recipe, config = trap / "-r.yaml", trap / "-c.json"
    recipe.write_text("name: x\n")
    config.write_text("{}")
    setting = "data.root=$(touch${IFS}pwned);`touch${IFS}pwned`"
    grid = trap / "-grid.txt"
    grid.write_text(setting + "\n")
    env = slurm.stand_in(seen, codes=[DONE]) | {"DS_CONFIG": str(config), "GRID": str(grid)}
    flags = ("--nodes=1", "--array=0-0", f"--job-name=-{TRAP}", "sweep.sh")
    job = slurm.sbatch(trap / "-rf runs", *flags, recipe=recipe, settings=(f"data.root={TRAP}",), **env)
    assert slurm.ended(f"{job}_0")["JobState"] == "COMPLETED", list(slurm.folder.glob("*.out"))
    given = json.loads((seen / "start-0-rank-0.json").read_text())
    argv = given["argv"]
    assert f"--recipe={recipe}" in argv and f"--ds_config={config}" in argv
    assert f"--run-dir={trap / '-rf runs' / '0'}" in argv
    assert f"--set={setting}" in argv and f"data.root={TRAP}" in argv
    assert (trap / "-rf runs" / "table.md").is_file()
    limit = int(given["environ"]["SLURM_JOB_END_TIME"]) - int(given["environ"]["SLURM_JOB_START_TIME"])
    assert limit == 600, "the ranks know their time limit"
    for place in (tools.ROOT, slurm.folder, tmp_path):
        assert not [name for _, _, files in os.walk(place) for name in files if name == "pwned"]


def test_a_name_that_slurm_would_read_otherwise_is_refused(slurm, tmp_path):
    for name in ("100%j", "back\\slash", "two\nlines"):
        job = slurm.sbatch(tmp_path / name, "--nodes=1", **slurm.stand_in(tmp_path / f"seen-{len(name)}", codes=[DONE]))
        facts = slurm.ended(job)
        assert facts["ExitCode"] == f"{BAD_INPUT}:0" and "Choose another name" in slurm.said(job), slurm.said(job)


def test_a_node_for_oneself_still_gives_as_many_ranks_as_gpus_were_asked_for(slurm, tools, tmp_path):
    seen = tmp_path / "seen"
    job = slurm.sbatch(
        tmp_path / "run", "--exclusive", "--gpus-per-node=1", **slurm.stand_in(seen, codes=[DONE], rank="all")
    )
    assert slurm.ended(job)["JobState"] == "COMPLETED", slurm.said(job)
    given = [json.loads(file.read_text())["environ"] for file in seen.glob("start-0-rank-*.json")]
    assert sorted(one["SLURMD_NODENAME"] for one in given) == ["n1", "n2"], "the script's own node shows two GPUs"


def test_more_ranks_than_the_job_has_room_for_are_refused_with_the_flag_that_helps(slurm, tools, tmp_path):
    job = slurm.sbatch(tmp_path / "run", "--gpus-per-node=2", **slurm.stand_in(tmp_path / "seen", codes=[DONE]))
    facts = slurm.ended(job)
    assert (facts["ExitCode"], facts["Restarts"]) == (f"{BAD_INPUT}:0", "0"), slurm.said(job)
    assert "each node is to have 2 ranks (2 GPUs)" in slurm.said(job)
    assert "--ntasks-per-node=2" in slurm.said(job) and "RANKS_PER_NODE=1" in slurm.said(job)


def test_an_interpreter_that_is_not_there_is_refused_by_name(slurm, tools, tmp_path):
    job = slurm.sbatch(tmp_path / "run", PYTHON=str(tmp_path / "venv" / "bin" / "python"))
    facts = slurm.ended(job)
    assert (facts["ExitCode"], facts["Restarts"]) == (f"{BAD_INPUT}:0", "0"), slurm.said(job)
    assert f"PYTHON is '{tmp_path}/venv/bin/python'" in slurm.said(job)


def test_a_slow_node_is_waited_for_and_named_as_late_and_a_warning_meanwhile_ends_nothing(slurm, tools, tmp_path):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    job = slurm.sbatch(folder, **slurm.stand_in(seen, codes=[DONE], rank="all", late="n2"), PREFLIGHT="1")
    tools.wait_until(lambda: "waiting for n2: not here after" in slurm.said(job), "a word about n2")
    slurm.command("scancel", "--signal=USR1", job)
    tools.wait_until(lambda: list(folder.glob(".preflight/.told@*")), "the signal", tell=lambda: slurm.said(job))
    (seen / "come").touch()
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), slurm.said(job)
    said = slurm.said(job)
    assert "a checkpoint takes" in said, "computed from the recipe and the job's options"
    assert "preflight: n2 came" in said and "preflight: 2 nodes passed" in said and "exclude" not in said, said
    assert tools.attempts(folder) == [DONE]
