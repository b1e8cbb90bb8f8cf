"""submit, status and cancel, with Slurm's commands replaced by programs that write down what they get."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from distill_engine.cluster.exit_codes import BAD_INPUT
from launcher.__main__ import app
from launcher.history import LOCK_FILE

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "recipes" / "demo.yaml")
HOSTILE = "a b;$(touch pwned)`touch pwned`'\"\n--uid=0"


def launcher(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_submission_is_checked_sent_and_remembered(fake_slurm, tmp_path, history, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    fake_slurm.answer("sbatch", ("77\n", 0))
    run_dir = history(tmp_path / "run")
    words = ("--run-dir", run_dir, "--nodes", 2, "--gpus-per-node", 4, "--set", "seed=5", "--resize")
    said = launcher("submit", DEMO, *words)
    assert said.exit_code == 0 and "job 77" in said.output
    (call,) = fake_slurm.calls
    assert call[:3] == ["sbatch", "--parsable", "--job-name=distill-demo"]
    assert {"--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=4"} <= set(call)
    assert call[-2:] == ["--set", "seed=5"]
    assert fake_slurm.environment["RECIPE"] == DEMO and "RANK" not in fake_slurm.environment
    assert fake_slurm.environment["RESIZE"] == "1"

    fake_slurm.answer("squeue", ("RUNNING|None|1:00\n", 0))
    recipe = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    recipe["teacher"]["path"] = str(ROOT / "recipes" / "demo" / "teacher")
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    told = launcher("status", run_dir)
    rows = dict(line.split(maxsplit=1) for line in told.output.replace("best ppl", "best").splitlines())
    assert told.exit_code == 0, told.output
    assert rows["job"] == "77: RUNNING, 1:00"
    assert rows["step"] == "20 of 400" and rows["best"] == "25.5 at step 15" and rows["checkpoint"] == "step 15"
    assert "time left        12.7 min" in told.output  # 380 steps of 2 s

    fake_slurm.answer("scancel", ("", 0))
    assert launcher("cancel", run_dir).exit_code == 0
    assert fake_slurm.calls[-1] == ["scancel", "77"]


def test_records_that_are_missing_are_told(fake_slurm, tmp_path, history):
    run_dir = history(tmp_path / "run")
    assert "records missing" not in launcher("status", run_dir).output
    file = run_dir / "metrics.jsonl"
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    file.write_text("".join(line for line in lines if json.loads(line)["step"] <= 10))  # its checkpoint is of step 15
    assert "records missing  those of steps 11 to 15" in launcher("status", run_dir).output
    gap = {"kind": "event", "step": 8, "seconds": 1.0, "values": {"run/missing_records": 3.0}}
    file.write_text(json.dumps(gap) + "\n" + "".join(lines))
    assert "records missing  3 in between (" in launcher("status", run_dir).output


def test_hostile_names_stay_names(fake_slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_slurm.answer("sbatch", ("77\n", 0))
    recipe = tmp_path / f"-r {HOSTILE}.yaml"
    recipe.write_bytes(Path(DEMO).read_bytes())
    said = launcher(
        "submit", f"./{recipe.name}", "--run-dir", HOSTILE, "--partition", HOSTILE, f"--set=name=x{HOSTILE}"
    )
    assert said.exit_code == BAD_INPUT, "a name that a file or a job cannot have is refused"
    said = launcher("submit", f"./{recipe.name}", "--run-dir", HOSTILE, "--partition", HOSTILE)
    assert said.exit_code == 0, said.output
    assert shlex.split(said.output.split("look at it with: ")[1]) == ["python", "-m", "launcher", "status", HOSTILE]
    assert f"--partition={HOSTILE}" in fake_slurm.calls[0] and fake_slurm.environment["RECIPE"] == str(recipe)
    assert (tmp_path / HOSTILE).stat().st_mode & 0o777 == 0o700, "private before the job has begun"
    assert fake_slurm.environment["RUN_DIR"] == str(tmp_path / HOSTILE)
    assert not list(tmp_path.rglob("pwned"))


def test_a_dry_run_prints_what_a_shell_would_run_and_runs_nothing(fake_slurm, tmp_path):
    fake_slurm.answer("sbatch", ("77\n", 0))
    said = launcher("submit", DEMO, "--dry-run", "--run-dir", tmp_path / HOSTILE, "--nodes", 3)
    assert said.exit_code == 0 and "#SBATCH --requeue" in said.output and fake_slurm.calls == []
    command = said.output.split("\n\n# ")[0]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=30, capture_output=True)
    assert "--nodes=3" in fake_slurm.calls[0], "the printed line does the same"
    assert fake_slurm.environment["RUN_DIR"] == str(tmp_path / HOSTILE)
    assert not list(tmp_path.rglob("pwned"))


def test_a_plugin_is_known_to_every_command_and_given_to_the_job(fake_slurm, tmp_path, monkeypatch):
    """In a process of its own: what a plugin registers stays. As with `distill`, its place in the line is free."""
    fake_slurm.answer("sbatch", ("77\n", 0))
    (tmp_path / "toy_term.py").write_bytes((ROOT / "tests" / "extension" / "toy_term.py").read_bytes())
    words = ["--set", "losses.weights.cosine=1", "--run-dir", str(tmp_path / "run")]

    def run(*more: str):
        command = [sys.executable, "-m", "launcher", "submit", DEMO, *words, *more]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    refused = run()
    assert refused.returncode == BAD_INPUT and "losses.weights.cosine" in refused.stderr
    assert run("--plugin", "toy_term.py").returncode == 0
    (call,) = fake_slurm.calls
    assert call[-2:] == ["--plugin", str(tmp_path / "toy_term.py")], "as the job finds it"
    missing = run("--plugin=no_such_module")
    assert missing.returncode == BAD_INPUT and "--plugin no_such_module cannot be imported" in missing.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "no.yaml"], "there is no such file"),
        (["submit", DEMO, "--set", "seed=-1"], "seed"),
        (["submit", DEMO], "sbatch: Invalid partition"),
        (["status", "no/such/run"], "Give a run folder"),
        (["cancel", "."], "--job ID"),
    ],
)
def test_refusals(fake_slurm, words, said):
    fake_slurm.answer("sbatch", ("sbatch: error: x\nInvalid partition name specified", 1))
    result = launcher(*words)
    assert result.exit_code == BAD_INPUT and said in result.output + result.stderr, result.output


def test_a_run_that_nobody_submitted_still_has_a_status(tmp_path, history):
    told = launcher("status", history(tmp_path / "run"))
    assert told.exit_code == 0 and "none is known here" in told.output and "2 s" in told.output


def test_status_and_cancel_know_a_job_that_sbatch_started(fake_slurm, tmp_path, history):
    run_dir = history(tmp_path / "run")
    (run_dir / "logs").mkdir()
    (run_dir / "logs" / "job").write_text("70\n")
    os.utime(run_dir / "logs" / "job", (1, 1))
    (run_dir / ".lock").write_text('{"pid": 5, "host": "gpu01", "job": "77"}')
    fake_slurm.answer("squeue", ("RUNNING|None|1:00\n", 0))
    fake_slurm.answer("scancel", ("", 0))
    assert "77: RUNNING" in launcher("status", run_dir).output
    assert launcher("cancel", run_dir).exit_code == 0 and fake_slurm.calls[-1] == ["scancel", "77"]
    os.utime(run_dir / ".lock", (0, 0))
    assert "70: RUNNING" in launcher("status", run_dir).output, "one that was submitted since"
    (run_dir / "logs" / "job").unlink()
    (run_dir / ".lock").write_text('{"pid": 5, "host": "gpu01"}')
    assert "none is known here" in launcher("status", run_dir).output


def test_the_lock_is_the_runs():
    from distill_engine.setup import run_folder

    assert LOCK_FILE == run_folder.LOCK_FILE


@pytest.mark.parametrize(("asked", "given"), [("ALL", "ALL"), ("NONE", ""), ("NIL", ""), ("HOME,LANG", "HOME,LANG,")])
def test_the_job_is_given_its_recipe_whatever_else_is_exported(fake_slurm, tmp_path, monkeypatch, asked, given):
    names = "" if asked == "ALL" else "DISTILL_HOME,RECIPE,RUN_DIR"
    fake_slurm.answer("sbatch", ("77\n", 0))
    assert launcher("submit", DEMO, "--run-dir", tmp_path / "a", "--sbatch", f"--export={asked}").exit_code == 0
    assert f"--export={given}{names}" in fake_slurm.calls[-1]
    monkeypatch.setenv("SBATCH_EXPORT", asked)
    assert launcher("submit", DEMO, "--run-dir", tmp_path / "b").exit_code == 0
    assert fake_slurm.environment["SBATCH_EXPORT"] == f"{given}{names}"


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [(None, 0o700, 0o600), ("007", 0o770, 0o660), ("u=rwx", 0o700, 0o600)]
)
def test_what_submit_leaves_is_for_whom_the_jobs_files_are(fake_slurm, tmp_path, monkeypatch, umask, folder, file):
    if umask is not None:
        monkeypatch.setenv("DISTILL_UMASK", umask)
    fake_slurm.answer("sbatch", ("77\n", 0))
    assert launcher("submit", DEMO, "--run-dir", tmp_path / "run").exit_code == 0
    modes = [(tmp_path / "run" / name).stat().st_mode & 0o777 for name in (".", "logs", "logs/job")]
    assert modes == [folder, folder, file]
