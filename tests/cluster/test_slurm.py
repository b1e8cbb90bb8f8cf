"""`sbatch slurm/distill_bb3b.sh` on a real two-node Slurm: finished, stopped, killed, cancelled, refused."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil

from distill_engine.cluster.exit_codes import BAD_INPUT, DONE, STOPPED_AND_SAVED
from launcher.attempts import read_attempts
from launcher.requeue import ENDED_FROM_OUTSIDE

KILLED = 128 + signal.SIGKILL
KEY = "0123456789abcdef" * 2 + "feed5678"  # has the shape of a W&B key
HOSTILE = "a b; $(touch pwned) `touch pwned` 'q"


def test_the_job_script_runs_to_the_end_in_a_folder_with_a_hostile_name(slurm, tools, quiet_run, tmp_path):
    folder = tmp_path / HOSTILE
    offline = tuple(one.replace("mode=disabled", "mode=offline") for one in tools.QUICK)
    job = slurm.sbatch(folder, PREFLIGHT="1", WANDB_API_KEY=KEY, settings=offline)
    tools.wait_until(lambda: tools.last_step(folder) >= 1, "step 1", tell=lambda: slurm.said(job))
    seen = "".join(" ".join(words) for words in command_lines())
    assert "distill_engine/run.py" in seen
    shown = slurm.command("scontrol", "show", "job", job) + slurm.command("scontrol", "write", "batch_script", job, "-")
    assert "Command=" in shown and "source" in shown
    assert KEY not in seen and KEY not in shown
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), slurm.said(job)
    assert "preflight: 2 nodes passed" in slurm.said(job) and "done: the run has finished" in slurm.said(job)
    assert tools.measured(folder) == tools.measured(quiet_run), "srun gives the same numbers as torchrun"
    assert (folder / "best" / "model.safetensors").is_file() and tools.attempts(folder) == [DONE]
    assert not list(Path(tools.ROOT).glob("pwned")) and not list(slurm.folder.rglob("pwned"))
    assert folder.stat().st_mode & 0o077 == 0, "private by default"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files) and any("checkpoints" in path.parts for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == [] and KEY not in slurm.said(job)


def command_lines() -> Iterator[list[str]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            yield process.cmdline()


def test_stopped_then_a_rank_killed_it_ends_like_an_undisturbed_run(slurm, tools, quiet_run, tmp_path):
    folder = tmp_path / "run"
    job = slurm.sbatch(folder)

    def said() -> str:
        logs = "".join(path.read_text(errors="replace")[-3000:] for path in (folder / "logs").glob("*.log"))
        return slurm.said(job) + logs

    tools.wait_until(lambda: tools.last_step(folder) >= 2, "step 2", tell=said)
    slurm.command("scancel", "--signal=USR1", job)
    tools.wait_until(lambda: tools.attempts(folder) == [STOPPED_AND_SAVED], "the first end", tell=said)
    stopped_at = tools.last_step(folder)
    assert 2 <= stopped_at < 30

    def second_start() -> bool:
        slurm.hurry(job)
        return tools.last_step(folder) > stopped_at

    tools.wait_until(second_start, "a step after the requeue", tell=said)
    tools.ranks_of(folder)[1].send_signal(signal.SIGKILL)
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "2"), said()
    codes = tools.attempts(folder)
    assert codes[0] == STOPPED_AND_SAVED and codes[1] not in (DONE, STOPPED_AND_SAVED, BAD_INPUT)
    assert codes[2:] == [DONE]
    assert f"requeue: stopped and saved at step {stopped_at}" in slurm.said(job), "logs are appended to"
    assert "try 2 of 3" in slurm.said(job)
    assert tools.measured(folder) == tools.measured(quiet_run)


def test_signalled_before_the_time_limit_it_saves_and_goes_on_until_it_is_cancelled(slurm, tools, tmp_path):
    folder = tmp_path / "run"
    endless = tuple(one.replace("max_steps=30", "max_steps=100000") for one in tools.QUICK)
    job = slurm.sbatch(folder, "--signal=USR1@105", settings=endless)
    tools.wait_until(lambda: tools.last_step(folder) >= 2, "step 2", tell=lambda: slurm.said(job))
    # one or two minutes are left now: Slurm, which looks every 30 s, finds that the signal is due
    slurm.command("scontrol", "update", f"jobid={job}", f"TimeLimit={slurm.seconds(job) // 60 + 2}")
    tools.wait_until(lambda: len(tools.attempts(folder)) == 1, "the signal", tell=lambda: slurm.said(job))
    slurm.command("scontrol", "update", f"jobid={job}", "TimeLimit=10")
    assert tools.attempts(folder) == [STOPPED_AND_SAVED], slurm.said(job)
    reached = tools.last_step(folder)
    assert read_attempts(folder)[-1].step == reached > 0

    def resumed() -> bool:
        slurm.hurry(job)
        return tools.last_step(folder) > reached

    tools.wait_until(resumed, "a step after the requeue", tell=lambda: slurm.said(job))
    ranks = tools.ranks_of(folder)
    second = slurm.sbatch(folder, "--nodes=1", settings=endless)
    assert slurm.ended(second)["ExitCode"] == f"{BAD_INPUT}:0", slurm.said(second)
    refusal = "".join(log.read_text(errors="replace") for log in (folder / "logs").glob(f"*-{second}-*.log"))
    assert "in use by another run" in refusal and f'"job": "{job}"' in refusal
    slurm.command("scancel", job)
    assert slurm.ended(job)["JobState"] == "CANCELLED"
    tools.wait_until(lambda: not any(rank.is_running() for rank in ranks.values()), "the end of the ranks", 40)
    last = read_attempts(folder)[-1]
    assert tools.attempts(folder)[:2] == [STOPPED_AND_SAVED, BAD_INPUT] and len(tools.attempts(folder)) == 3
    assert (last.job, last.reason) == (job, ENDED_FROM_OUTSIDE), "a cancelled job is not started again"


def test_a_time_limit_shorter_than_a_start_ends_the_restarts_and_says_so(slurm, tools, tmp_path):
    folder = tmp_path / "run"
    (folder / "logs").mkdir(parents=True)
    # so much to read that no machine has begun to train when the signal comes
    slow = tuple(one.replace("train_examples=200", "train_examples=5000000") for one in tools.QUICK)
    job = slurm.sbatch(folder, "--hold", settings=slow)
    lines = [json.dumps({"job": job, "code": STOPPED_AND_SAVED, "step": -1}) for _ in range(3)]
    (folder / "logs" / "attempts.jsonl").write_text("\n".join(lines) + "\n")
    slurm.command("scontrol", "update", f"jobid={job}", "TimeLimit=1")  # the signal is due at once
    slurm.command("scontrol", "release", job)
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", f"{STOPPED_AND_SAVED}:0"), slurm.said(job)
    assert "the time limit is shorter than one start" in slurm.said(job)


def test_a_bad_recipe_is_never_requeued(slurm, tools, tmp_path):
    job = slurm.sbatch(tmp_path / "run", settings=("optimizer.learning_rate=-1",))
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", f"{BAD_INPUT}:0", "0")
    assert "stop: recipe, configuration or data cannot be used" in slurm.said(job)
    assert tools.attempts(tmp_path / "run") == [BAD_INPUT]


def test_a_sweep_tries_each_line_and_ends_with_one_table(slurm, tools, tmp_path):
    grid, folder = tmp_path / "grid.txt", tmp_path / "sweep"
    lines = ("# two runs", "losses.weights.hidden=1  # weak", "", "losses.weights.hidden=2 losses.weights.prediction=8")
    grid.write_text("\n".join(lines) + "\n")
    quick = tuple(one.replace("max_steps=30", "max_steps=3") for one in tools.QUICK)
    job = slurm.sbatch(folder, "--nodes=1", "--array=0-2", "sweep.sh", settings=quick, GRID=str(grid))
    for element in ("0", "1", "2"):
        assert slurm.ended(f"{job}_{element}")["JobState"] == "COMPLETED", slurm.command("ls", "-R", str(folder))
    rows = [line for line in (folder / "table.md").read_text().splitlines() if "losses.weights.hidden" in line]
    assert len(rows) == 2
    scores = [float(row.split("|")[2]) for row in rows]
    assert scores == sorted(scores), "best first"
    assert all("| finished |" in row and "weak" not in row for row in rows)
    for element, hidden in (("0", 1.0), ("1", 2.0)):
        recipe = (folder / element / "recipe.yaml").read_text()
        assert f"hidden: {hidden}" in recipe and f"group: sweep-{job}" in recipe


def test_the_ranks_of_two_nodes_share_a_cache(slurm, tmp_path):
    folder = tmp_path / "cache"
    command = ("cache", "recipes/demo.yaml", "--out", str(folder), "--shard-mib", "0.05")
    few = ("--set", "data.datasets.0.train_examples=40", "--set", "data.datasets.0.valid_examples=8")
    job = slurm.sbatch(folder, "share.sh", settings=(), options=(*command, *few))
    assert slurm.ended(job)["ExitCode"] == "0:0", slurm.said(job)
    assert "is complete: teacher.source: cache" in slurm.said(job)
    assert len(list(folder.glob("*/0*"))) > 2 and list(folder.glob(".work/slurm-*/rank-1.alive"))
    job = slurm.sbatch(folder, "share.sh", settings=(), options=("train",))
    assert slurm.ended(job)["ExitCode"] == f"{BAD_INPUT}:0" and "the command is 'train'" in slurm.said(job)
