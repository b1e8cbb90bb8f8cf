"""The program as a wheel, in an empty folder: recipes, configurations and job scripts come with it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from distill_engine.cluster.exit_codes import BAD_INPUT

ROOT = Path(__file__).parents[2]
SOURCES = ("distill_engine", "launcher", "recipes", "ds_configs", "slurm", "setup.py", "pyproject.toml", "README.md")
FEW = (
    "stop.max_steps=2",
    "schedule.warmup_steps=1",
    "data.datasets.0.train_examples=128",
    "data.datasets.0.valid_examples=8",
    "batch.per_rank=4",
)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An interpreter that has the wheel, and of our own environment everything but this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:  # building leaves files behind
        here = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(here, source / name, ignore=ignore) if here.is_dir() else shutil.copy(here, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, timeout=120)
    venv.create(folder / "venv", symlinks=True)
    interpreter = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "--python", str(interpreter), "install", "--no-deps", "--no-index", wheel], check=True, timeout=120
    )
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # our own .pth files are not read there
    shutil.rmtree(source)
    return interpreter


def run(python: Path, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command in a folder that has nothing to do with the repository."""
    ours = ("PYTHONPATH", "PYTHON", "DISTILL_HOME")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    command = [python, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, timeout=300)


def test_the_wheel_trains_submits_and_plans_in_an_empty_folder(python, tmp_path):
    site = python.parents[1]
    trained = run(
        python, tmp_path, python.parent / "distill", "train", "--run-dir", "run", *[f"--set={one}" for one in FEW]
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()

    recipes = run(python, tmp_path, "-m", "distill_engine.cli", "recipes", "--copy", "demo")
    assert recipes.returncode == 0, recipes.stderr
    dry = run(python, tmp_path, "-m", "launcher", "submit", "demo.yaml", "--dry-run", "--nodes", "2")
    assert dry.returncode == 0, dry.stderr
    assert f"RECIPE={tmp_path / 'demo.yaml'}" in dry.stdout and f"PYTHON={python}" in dry.stdout
    assert f"DISTILL_HOME={site}" in dry.stdout and "#SBATCH --requeue" in dry.stdout
    plan = run(python, tmp_path, "-m", "launcher", "plan", "demo.yaml")
    assert plan.returncode == 0 and "It fits." in plan.stdout, plan.stdout + plan.stderr


def test_the_job_scripts_of_a_wheel_start_what_is_installed(python, tmp_path):
    """A stand-in for srun shows what a job would start; a copy of the scripts does the same as the installed ones."""
    made = run(python, tmp_path, "-m", "launcher", "templates", "mine")
    assert made.returncode == 0, made.stderr
    assert run(python, tmp_path, "-m", "launcher", "templates", "mine").returncode == BAD_INPUT, "overwrites nothing"
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (programs / "scontrol").write_text("#!/bin/bash\n")
    (programs / "squeue").write_text("#!/bin/bash\necho PENDING 1\n")
    for file in programs.iterdir():
        file.chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "PREFLIGHT": "0", "PYTHON": str(python)}
    job |= {"PATH": f"{programs}:{os.environ['PATH']}", "DISTILL_HOME": str(tmp_path / "mine")}
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = tmp_path / "mine" / "slurm" / "distill_bb3b.sh"
    done = subprocess.run(["bash", script], cwd=tmp_path, env=clean | job, capture_output=True, text=True, timeout=60)
    assert f"{python}\n-u\n-m\ndistill_engine.run\n" in done.stdout, done.stdout + done.stderr
    assert f"--recipe={tmp_path / 'mine' / 'recipes' / 'bb3b_tinybert.yaml'}" in done.stdout
