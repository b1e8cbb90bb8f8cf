"""The job script itself, with srun replaced by a program that writes down what it is given."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("resize", "passed"), [(None, False), ("0", False), ("1", True)])
def test_resize_reaches_the_program(fake_slurm, tmp_path, monkeypatch, resize, passed):
    for command in ("srun", "scontrol"):
        fake_slurm.answer(command, ("", 0))
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "2"}.items():
        monkeypatch.setenv(name, value)
    own = {"DISTILL_HOME": ROOT, "PREFLIGHT": 0, "RUN_DIR": tmp_path / "run", "PYTHON": sys.executable}
    for name, value in own.items():
        monkeypatch.setenv(name, str(value))
    if resize is not None:
        monkeypatch.setenv("RESIZE", resize)
    script = ROOT / "slurm" / "distill_bb3b.sh"
    subprocess.run(["bash", script, "--set", "seed=2"], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    (srun,) = [call for call in fake_slurm.calls if call[0] == "srun"]
    assert srun[-2:] == ["--set", "seed=2"] and ("--resize" in srun) == passed
