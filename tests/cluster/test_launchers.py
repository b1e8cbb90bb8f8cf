"""The same program under every launcher, without flags: the same losses, true exit codes, no orphans."""

import os
import shutil
import signal
import subprocess

import psutil
import pytest

from distill_engine.cluster.exit_codes import BAD_INPUT, DONE, STOPPED_AND_SAVED, read_verdict


@pytest.mark.parametrize("launcher", ["deepspeed", "mpirun"])
def test_two_ranks_give_the_same_losses_under_every_launcher(tools, quiet_run, tmp_path, launcher):
    if launcher == "mpirun" and shutil.which("mpirun") is None:
        pytest.skip("no mpirun here: apt-get install openmpi-bin")
    done = tools.launched(launcher, tmp_path / "run")
    assert done.returncode == DONE, done.stdout + done.stderr
    assert tools.measured(tmp_path / "run") == tools.measured(quiet_run)
    assert "step 30/30" in done.stdout
    assert "\x1b[2K" not in done.stdout and "╭" not in done.stdout, "a log, although mpirun gives its ranks a terminal"


def test_one_rank_without_a_launcher_gives_the_same_losses_but_for_rounding(tools, quiet_run, tmp_path):
    settings = tuple(one.replace("per_rank=2", "per_rank=4") for one in tools.QUICK)
    done = tools.launched("python", tmp_path / "run", settings)
    assert done.returncode == DONE, done.stdout + done.stderr
    alone, together = tools.losses_of(tmp_path / "run"), tools.losses_of(quiet_run)
    assert [step for step, _ in alone] == [step for step, _ in together] == list(range(1, 31))
    assert [loss for _, loss in alone] == pytest.approx([loss for _, loss in together], rel=1e-4)


def test_a_bad_recipe_is_said_once_and_mpirun_tells_the_code(tools, tmp_path):
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun here: apt-get install openmpi-bin")
    done = tools.launched("mpirun", tmp_path / "run", ("optimizer.learning_rate=-1",))
    assert done.returncode == BAD_INPUT, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("optimizer.learning_rate") == 1


def test_ranks_left_over_from_another_start_are_refused(tools, tmp_path):
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun here: apt-get install openmpi-bin")
    stale = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = subprocess.run(
        tools.command("mpirun", tmp_path / "run"), env=os.environ | stale, capture_output=True, text=True, timeout=60
    )
    assert done.returncode not in (DONE, None) and "unset RANK WORLD_SIZE" in done.stderr, done.stderr


def test_ranks_do_not_outlive_a_killed_deepspeed(tools, tmp_path):
    """Not even when only the outermost process is killed, which tells the ones below nothing."""
    folder = tmp_path / "run"
    endless = tuple(one.replace("max_steps=30", "max_steps=100000") for one in tools.QUICK)
    with (tmp_path / "said").open("wb") as said:
        runner = subprocess.Popen(
            tools.command("deepspeed", folder, endless),
            cwd=tools.ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            stdout=said,
            stderr=said,
        )
    try:
        tools.wait_until(lambda: tools.last_step(folder) >= 2, "step 2", tell=(tmp_path / "said").read_text)
        ranks = tools.ranks_of(folder)
        assert sorted(ranks) == [0, 1]
    finally:
        runner.kill()
        runner.wait()
    tools.wait_until(lambda: not any(rank.is_running() for rank in ranks.values()), "the end of the ranks", 30)
    assert "its launcher is gone" in (tmp_path / "said").read_text()
    assert list((folder / "checkpoints").glob("step-*")), "they saved before they ended"


@pytest.mark.parametrize(
    ("launcher", "victim", "number"),
    [
        ("deepspeed", "runner", signal.SIGTERM),
        ("deepspeed", "runner", signal.SIGUSR1),
        ("deepspeed", "helper", signal.SIGKILL),
        ("deepspeed", "helper", signal.SIGUSR1),
        ("mpirun", "runner", signal.SIGKILL),
    ],
)
def test_a_launcher_that_is_killed_takes_its_ranks_along_and_the_verdict_tells_the_truth(
    tools, tmp_path, launcher, victim, number
):
    """What ranks do for themselves, with ranks that only live: raw DeepSpeed leaves them behind in every case."""
    if launcher == "mpirun" and shutil.which("mpirun") is None:
        pytest.skip("no mpirun here: apt-get install openmpi-bin")
    verdict, ranks = tmp_path / "verdict", tmp_path / "ranks"
    ranks.mkdir()
    words = tools.command(launcher, tmp_path, program="tests/cluster/idle_rank.py", arguments=(str(ranks),))
    own = {"DISTILL_VERDICT": str(verdict), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("wb") as said:
        runner = subprocess.Popen(words, cwd=tools.ROOT, env=os.environ | own, stdout=said, stderr=said)
    try:
        tools.wait_until(lambda: len(list(ranks.iterdir())) == 2, "two ranks", tell=(tmp_path / "said").read_text)
        pids = [int(file.name) for file in ranks.iterdir()]
        family = psutil.Process(runner.pid).children(recursive=True)
        helper = next((one for one in family if "deepspeed.launcher.launch" in one.cmdline()), None)
        (psutil.Process(runner.pid) if victim == "runner" or helper is None else helper).send_signal(number)
        code = runner.wait(60)
    finally:
        runner.kill()
    tools.wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the end of the ranks", 30)
    assert {file.name for file in ranks.glob("*.saved")} == {f"{pid}.saved" for pid in pids}
    # DeepSpeed's own code is 0 when a signal ends its helper; what counts is what rank 0 left
    assert read_verdict(verdict)[0] == STOPPED_AND_SAVED and (code != DONE or victim == "helper")
