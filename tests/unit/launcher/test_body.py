"""The job script itself, with srun replaced by a program that writes down what it is given."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill_engine.cluster.exit_codes import BAD_INPUT

ROOT = Path(__file__).parents[3]


def run_script(fake_slurm, folder: Path, *words: str, script: str = "distill_bb3b.sh", **environment: object):
    """The script in a job of one node with two tasks; how it ended."""
    for command, said in {"srun": "", "scontrol": "", "squeue": "PENDING 1\n"}.items():  # a requeue succeeds
        fake_slurm.answer(command, (said, 0))
    job = {"SLURM_JOB_ID": 7, "SLURM_JOB_NUM_NODES": 1, "SLURM_NTASKS_PER_NODE": 2, "PREFLIGHT": 0}
    own = {"DISTILL_HOME": ROOT, "RUN_DIR": folder / "run", "PYTHON": sys.executable}
    strangers = ("SLURM_", "RESIZE", "RANKS_PER_NODE")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(strangers)}
    given = clean | {name: str(value) for name, value in (job | own | environment).items() if value is not None}
    return subprocess.run(
        ["bash", ROOT / "slurm" / script, *words], cwd=folder, env=given, capture_output=True, text=True, timeout=60
    )


def started(fake_slurm) -> list[list[str]]:
    return [call for call in fake_slurm.calls if call[0] == "srun"]


@pytest.mark.parametrize(("resize", "passed"), [(None, False), ("0", False), ("1", True)])
def test_resize_reaches_the_program(fake_slurm, tmp_path, resize, passed):
    run_script(fake_slurm, tmp_path, "--set", "seed=2", RESIZE=resize)
    (srun,) = started(fake_slurm)
    assert srun[-2:] == ["--set", "seed=2"] and ("--resize" in srun) == passed


EIGHT = {"SLURM_GPUS_ON_NODE": 8, "SLURM_CPUS_ON_NODE": 64, "SLURM_NTASKS_PER_NODE": 8, "SLURM_CPUS_PER_TASK": 8}


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, 2),
        ({"SLURM_NTASKS_PER_NODE": None}, 1),
        (EIGHT, 8),
        (EIGHT | {"SLURM_GPUS_PER_NODE": "2"}, 2),  # --exclusive: the node has eight
        (EIGHT | {"SLURM_GPUS_PER_NODE": "a100:4"}, 4),
        (EIGHT | {"SLURM_GPUS_PER_NODE": "a100:2,h100:1"}, 3),
        (EIGHT | {"SLURM_GPUS": "8", "SLURM_JOB_NUM_NODES": 2}, 4),
        (EIGHT | {"SLURM_GPUS": "a100:6", "SLURM_JOB_NUM_NODES": 2}, 3),
        (EIGHT | {"SLURM_GPUS_PER_NODE": "0", "SLURM_GPUS_ON_NODE": None}, 8),
        (EIGHT | {"RANKS_PER_NODE": 4, "SLURM_NTASKS_PER_NODE": 4, "SLURM_CPUS_ON_NODE": 32}, 4),
        (EIGHT | {"SLURM_NTASKS_PER_NODE": 4, "SLURM_CPUS_ON_NODE": 32, "SLURM_OVERCOMMIT": 1}, 8),
    ],
)
def test_one_rank_for_each_gpu_that_was_asked_for(fake_slurm, tmp_path, environment, ranks):
    done = run_script(fake_slurm, tmp_path, **environment)
    assert len(started(fake_slurm)) == 1, done.stderr
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", 1))
    assert {f"--ntasks-per-node={ranks}", f"--ntasks={ranks * nodes}"} <= set(started(fake_slurm)[0])


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (EIGHT | {"SLURM_NTASKS_PER_NODE": 4, "SLURM_CPUS_ON_NODE": 32}, ("8 ranks", "--ntasks-per-node=8", "=4")),
        (EIGHT | {"RANKS_PER_NODE": "9"}, ("9 ranks", "RANKS_PER_NODE=8")),
        (EIGHT | {"RANKS_PER_NODE": "all"}, ("RANKS_PER_NODE is 'all'", "number")),
        (EIGHT | {"SLURM_GPUS": "5", "SLURM_JOB_NUM_NODES": 2}, ("--gpus=5 on 2 nodes", "--gpus-per-node")),
        ({"PYTHON": "/no/such/python"}, ("PYTHON is '/no/such/python'", "no such program")),
        ({"PYTHON": "no-such-python"}, ("PYTHON is 'no-such-python'", "no such program")),
        ({"PYTHON": str(ROOT)}, (f"PYTHON is '{ROOT}'", "no such program")),
        ({"PYTHON": "cd"}, ("PYTHON is 'cd'", "no such program")),
    ],
)
def test_what_cannot_start_is_refused_before_anything_is_started(fake_slurm, tmp_path, environment, said):
    done = run_script(fake_slurm, tmp_path, **environment)
    assert done.returncode == BAD_INPUT and started(fake_slurm) == []
    for text in said:
        assert text in done.stderr
    assert not (tmp_path / "run" / "logs" / "attempts.jsonl").exists()


def program(folder: Path, name: str, text: str) -> Path:
    """An executable in a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder / name


def test_the_interpreter_is_found_by_name_and_one_without_the_engine_is_named(fake_slurm, tmp_path):
    own = program(tmp_path / "own", "own-python", f"#!/bin/bash\nexec '{sys.executable}' \"$@\"\n")
    path = f"{own.parent}{os.pathsep}{os.environ['PATH']}"
    run_script(fake_slurm, tmp_path, PYTHON="own-python", PATH=path)
    assert str(own) in started(fake_slurm)[0]
    bare = program(tmp_path / "bare", "python", f"#!/bin/bash\nexec '{sys.executable}' -S -E \"$@\"\n")
    done = run_script(fake_slurm, tmp_path, PYTHON=bare)
    assert done.returncode == BAD_INPUT and f"PYTHON is '{bare}', which lacks torch, deepspeed" in done.stderr


def test_the_systems_interpreter_is_taken_only_where_there_is_none_of_the_repositorys_and_that_is_said(
    fake_slurm, tmp_path
):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("slurm", "recipes", "ds_configs", "launcher", "distill_engine"):
        (home / name).symlink_to(ROOT / name)
    system = program(tmp_path / "system", "python3", f"#!/bin/bash\nexec '{sys.executable}' \"$@\"\n")
    path = f"{system.parent}{os.pathsep}{os.environ['PATH']}"
    done = run_script(fake_slurm, tmp_path, PYTHON=None, DISTILL_HOME=home, PATH=path)
    assert f"there is no {home}/.venv/bin/python, so this is run by {system}" in done.stdout
    assert str(system) in started(fake_slurm)[0]
    mine = program(tmp_path / "venv", "python", f"#!/bin/bash\nexec '{sys.executable}' \"$@\"\n")
    (home / ".venv").mkdir()
    (home / ".venv" / "bin").symlink_to(mine.parent)
    done = run_script(fake_slurm, tmp_path, PYTHON=None, DISTILL_HOME=home, PATH=path)
    assert str(home / ".venv" / "bin" / "python") in started(fake_slurm)[-1] and "there is no" not in done.stdout


GRID = """# comment
losses.weights.hidden=1   # the trailing kind
\t# an indented one
losses.weights.hidden=2 name=a#b\t#another
   \t
losses.weights.hidden=3\r
"""


@pytest.mark.parametrize(
    ("element", "settings"),
    [(0, ["losses.weights.hidden=1"]), (1, ["losses.weights.hidden=2", "name=a#b"]), (2, ["losses.weights.hidden=3"])],
)
def test_a_comment_in_the_grid_is_no_setting(fake_slurm, tmp_path, element, settings):
    (tmp_path / "grid.txt").write_text(GRID, newline="")
    job = {"SLURM_ARRAY_JOB_ID": 5, "SLURM_ARRAY_TASK_ID": element, "GRID": tmp_path / "grid.txt"}
    run_script(fake_slurm, tmp_path, script="sweep.sh", **job)
    (srun,) = started(fake_slurm)
    given = [word.removeprefix("--set=") for word in srun if word.startswith("--set=")]
    assert given == settings
    assert (tmp_path / "run" / str(element) / "settings.txt").read_text().split() == settings
    assert len((tmp_path / "run" / "grid.txt").read_text().splitlines()) == 3
