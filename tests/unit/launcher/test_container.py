"""Job scripts with CONTAINER: what starts the ranks, and that they run behind it."""

import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner
from unit.launcher.test_body import ROOT, program, run_script, started

from distill_engine.cluster.exit_codes import BAD_INPUT
from launcher.__main__ import app
from launcher.container import container

DEMO = ROOT / "recipes" / "demo.yaml"


def test_a_squashfs_image_goes_to_srun_with_every_folder_the_run_needs(fake_slurm, tmp_path):
    told = {"CONTAINER": "/images/distill.sqsh", "CONTAINER_MOUNTS": "/data,/scratch:/tmp", "RECIPE": DEMO}
    for preflight in (1, 0):  # the first ends there: nothing answers
        run_script(fake_slurm, tmp_path, **(told | {"PREFLIGHT": preflight}))
    preflight, ranks = started(fake_slurm)
    for srun in (preflight, ranks):
        assert "--container-image=/images/distill.sqsh" in srun and f"--container-workdir={tmp_path}" in srun
        (mounts,) = [word for word in srun if word.startswith("--container-mounts=")]
        pairs = mounts.partition("=")[2].split(",")
        assert pairs[-2:] == ["/data:/data", "/scratch:/tmp"]
        for folder in (ROOT, tmp_path, tmp_path / "run", ROOT / "recipes", ROOT / "ds_configs"):
            assert f"{folder}:{folder}" in pairs
    assert ranks[ranks.index("-u") - 1] == "python3", "the image's interpreter, not the script's"


def test_a_sif_image_is_run_by_apptainer(fake_slurm, tmp_path):
    """srun and apptainer are stand-ins that run what they are given: the program starts behind both."""
    tools = tmp_path / "tools"
    starts = f"#!/bin/bash\necho \"$0 $*\" >>'{tmp_path}/starts'\n"
    program(tools, "srun", starts + 'while [[ $1 == --* ]]; do shift; done; exec "$@"\n')
    skip = "shift; while [[ $1 != *.sif ]]; do shift; done; shift\n"
    program(tools, "apptainer", starts + skip + 'exec "$@"\n')
    program(tools, "inner-python", starts + "exit 78\n")
    said = program(tools, "squeue", "#!/bin/bash\necho PENDING 1\n").parent
    run_script(fake_slurm, tmp_path, CONTAINER="my.sif", CONTAINER_PYTHON="inner-python",
               PATH=f"{said}{os.pathsep}{os.environ['PATH']}", RECIPE=DEMO)  # fmt: skip
    srun, apptainer, inner = (tmp_path / "starts").read_text().splitlines()
    assert "/srun " in srun and "--container" not in srun
    assert re.search(r"/apptainer exec --nv --bind \S+ --pwd \S+ my.sif inner-python -u", apptainer)
    assert f"--run-dir={tmp_path / 'run'}" in inner


def test_the_scripts_own_interpreter_needs_no_torch_then(fake_slurm, tmp_path):
    blind = "import sys, runpy, importlib.util as u; find = u.find_spec; "
    blind += "u.find_spec = lambda n, *a: None if n in ('torch', 'deepspeed', 'transformers') else find(n, *a); "
    (tmp_path / "blind").mkdir()
    (tmp_path / "blind" / "sitecustomize.py").write_text(blind)
    run_script(fake_slurm, tmp_path, CONTAINER="a.sqsh", PYTHONPATH=tmp_path / "blind")
    assert len(started(fake_slurm)) == 1
    done = run_script(fake_slurm, tmp_path, PYTHONPATH=tmp_path / "blind")
    assert done.returncode == BAD_INPUT and "lacks torch, deepspeed, transformers" in done.stderr


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"CONTAINER_RUNTIME": "podman"}, "CONTAINER_RUNTIME is 'podman'"),
        ({"RUN_DIR": "a,b"}, "cannot be mounted"),
    ],
)
def test_what_no_container_can_do_is_refused(fake_slurm, tmp_path, told, said):
    told = {name: tmp_path / value if name == "RUN_DIR" else value for name, value in told.items()}
    done = run_script(fake_slurm, tmp_path, CONTAINER="a.sqsh", **told)
    assert done.returncode == BAD_INPUT and said in done.stderr and started(fake_slurm) == []


def test_a_dry_run_shows_it(monkeypatch, tmp_path):
    monkeypatch.setenv("CONTAINER", "docker://distill-engine:1")
    shown = CliRunner().invoke(app, ["submit", str(DEMO), "--dry-run", "--run-dir", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("# its ranks: ")]
    words = shlex.split(line.removeprefix("# its ranks: "))
    assert words[:4] == ["srun", "apptainer", "exec", "--nv"] and str(tmp_path / "run") in words[5].split(",")
    assert "CONTAINER=docker://distill-engine:1" in shown.stdout, "the job is told whatever sbatch exports"


def test_folders_are_mounted_once():
    found = container("a.sqsh", [Path("/a"), Path("/a"), Path("/b")], workdir=Path("/a"))
    assert found.srun[1] == "--container-mounts=/a:/a,/b:/b" and found.inside == ()
