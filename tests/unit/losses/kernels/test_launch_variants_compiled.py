"""Batches of other lengths start no compiler: one variant of each kernel for each size of its tiles and each pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.backends.nvidia", reason="Triton's NVIDIA backend is not installed")

SCRIPT, ROOT = Path(__file__).with_name("launch_variants.py"), Path(__file__).resolve().parents[4]
TILE_SIZES = 4  # attention's by the longest sequence: 16, 32, 64, 128
PASSES = 2  # sums, slopes
MOST = {
    "forward_kernel": TILE_SIZES, "backward_kernel": TILE_SIZES,
    "projected_error": PASSES, "plain_error": PASSES, "weight_gradient": 1,
    "_sums_kernel": 1, "_gradient_kernel": 1,
}  # fmt: skip


def test_lengths_do_not_multiply_variants():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert json.loads(done.stdout) == MOST
