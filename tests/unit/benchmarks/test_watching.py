"""benchmarks/watching.py on the smallest preset: a real run, and arithmetic that fits together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_one_complete_line():
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "watching.py"), "--preset", "tiny", "--pairs", "3"],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert (result["preset"], result["pairs"], result["ranks"], result["terms"]) == ("tiny", 3, 1, 9)
    assert 0 < result["ratio_p20"] <= result["ratio"] <= result["ratio_p80"]
    assert result["seconds_per_measured_step"] > result["seconds_per_step"] > 0
    assert result["share_at_default"] == pytest.approx((result["ratio"] - 1) / result["default_interval"])
