"""Benchmarks as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def one_line():
    """`one_line("step.py", "--preset", "tiny")` -> the JSON line that is all a benchmark prints."""

    def measured(script: str, *arguments: str) -> dict:
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / script), *arguments],
            capture_output=True, text=True, timeout=300, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        (line,) = done.stdout.splitlines()
        return json.loads(line)

    return measured
