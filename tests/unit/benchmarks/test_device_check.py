"""benchmarks/device_check.sh: a dry run of both commands on a CPU, with tiny shapes, is right to the last file."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wheels
from deepspeed.accelerator import get_accelerator

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "benchmarks" / "device_check.sh"
CASES = [("bf16", "replica", "fused", "_overlap"), ("fp16", "zero3", "reference", "")]  # the dry run's


def check(*arguments, **more):
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"PYTHON": sys.executable, "DRY": "1", **more}
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=590, env=environment, check=False)


def test_kernels(tmp_path):
    done = check("kernels", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "machine.out").read_text())["versions"]["torch"]
    assert "skipped" in (tmp_path / "gpu_tests.out").read_text()
    assert len(list(csv.DictReader((tmp_path / "kernels.csv").open()))) == 12


def test_steps(tmp_path):
    done = check("steps", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for precision, placement, kernels, overlap in CASES:
        result = json.loads((tmp_path / f"step_{precision}_{placement}_{kernels}{overlap}.out").read_text())
        found = result["preset"], result["precision"], result["placement"], result["kernels"]
        possible = precision if precision == "bf16" or torch.float16 in get_accelerator().supported_dtypes() else "bf16"
        assert found == ("bb3b_tiny", possible, placement, kernels)  # not every CPU multiplies in fp16
        assert result["overlap"] is bool(overlap)
        assert result["seconds_per_step"] > 0 and result["planned_memory_mib"] > 0 and result["host_waits"] <= 2
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    assert len(summary) == len(CASES) and all(": done, " in line for line in summary)


def test_what_there_is_no_time_for_is_said(tmp_path):
    done = check("steps", tmp_path, SECONDS_ALLOWED="5")
    assert done.returncode == 1
    assert (tmp_path / "summary.txt").read_text().count("not run: no time left") == len(CASES)


def test_a_failure_is_said_and_the_rest_goes_on(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase $* in *tests/gpu*) exit 3;; *kernels.py*) exit;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    done = check("kernels", tmp_path / "out", PYTHON=str(python))
    assert done.returncode == 1 and "gpu_tests: failed with 3" in done.stdout and "kernels: done" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("steps",), ("stpes", "folder")])
def test_a_wrong_call_shows_the_right_ones(tmp_path, arguments):
    done = check(*(tmp_path / one if one == "folder" else one for one in arguments))
    assert done.returncode == 2 and "steps" in done.stderr and "wheels" in done.stderr


def test_wheels_that_are_lacking(tmp_path):
    done = check("wheels", tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), "the tests' environment has all of them"
    text = (ROOT / "pyproject.toml").read_text()
    wanted = wheels.requirements(text)
    assert {"torch", "deepspeed", "transformers", "pytest", "triton"} <= {one.name for one in wanted}
    assert "ruff" not in {one.name for one in wanted}
    other = text.replace('"torch>=2.6,<3"', '"torch>=99"').replace("rich>", "riched>")
    assert wheels.lacking(wheels.requirements(other)) == ["torch>=99", "riched>=13.7"]
