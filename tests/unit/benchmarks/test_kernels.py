"""benchmarks/kernels.py at the tests' shapes: every implementation runs, every column is filled, work is counted."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import kernel_cases as cases
import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
FUSED = "triton" if torch.cuda.is_available() else "chunked"


def run(*arguments):
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def test_one_complete_row_for_each_case_and_implementation():
    done = run("--tiny", "--repeats", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["implementation"] for row in rows] == ["eager", "compiled", "reference", FUSED] * 3
    assert {row["group"] for row in rows} == {"attention", "hidden", "prediction"}
    for row in rows:
        assert 0 < float(row["p20"]) <= float(row["milliseconds"]) <= float(row["p80"])
        assert float(row["peak_extra_mib"]) >= float(row["gradients_mib"]) > 0
        assert float(row["gflops"]) > 0 and row["device"] and row["torch"]
        assert torch.cuda.is_available() or not row["replayed_milliseconds"]
    assert all(float(row["times_faster_than_eager"]) == 1 for row in rows if row["implementation"] == "eager")


def test_committed_rows_at_the_shapes_of_bart():
    """Whole contexts of 1024 tokens, on a CPU: under a tenth of eager's memory beside the gradients, and no slower."""
    with (ROOT / "benchmarks" / "results" / "kernels_cpu.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["implementation"] == "chunked"]
    shares = {row["case"]: float(row["share_beside_gradients"]) for row in rows if row["case"].startswith("bart_large")}
    assert len(shares) == 5 and max(shares.values()) < 0.1
    assert all(float(row["times_faster_than_eager"]) > 1 for row in rows if row["case"] in shares)


def test_a_misspelt_case_is_refused_with_the_list():
    done = run("--only", "bb4b")
    assert done.returncode == 2 and "no case contains 'bb4b'; there are: bb3b_encoder_self" in done.stderr


def test_all_implementations_compute_the_same_loss_and_gradients():
    for case in cases.TINY:
        runner = case.prepare(torch.float32, torch.device("cpu"))
        found = {}
        for name in ("eager", "reference", "chunked"):
            loss = runner.loss(name)
            found[name] = [loss, *torch.autograd.grad(loss, runner.leaves)]
        for name in ("reference", "chunked"):
            for one, other in zip(found[name], found["eager"], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_work_is_counted():
    attention, hidden, prediction = (case.prepare(torch.float32, torch.device("cpu")).work for case in cases.TINY)
    # 2 layers, 2 examples, 2 heads, 5 x 7 pairs: scores 8 + 16, gradients of query and key 8 + 8
    assert attention.gflop == pytest.approx(2 * 8 * 35 * (8 + 16 + 16) / 1e9)
    assert hidden.gflop == pytest.approx(3 * 2 * 10 * 8 * 16 / 1e9)
    assert prediction.gflop == pytest.approx(2 * 10 * 40 * (16 + 3 * 8) / 1e9)
    assert hidden.gigabytes == pytest.approx(4 * (10 * (8 + 8 + 16) + 2 * 8 * 16) / 1e9)
