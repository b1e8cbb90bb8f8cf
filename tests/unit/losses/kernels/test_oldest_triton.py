"""The kernels with the oldest Triton that is supported: compiled, and a few of the interpreter's tests.

`make oldest-triton` runs all of the kernels' tests with it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill_engine.losses.kernels.dispatch import OLDEST_TRITON

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[4]
FOLDER = Path(os.environ.get("OLDEST_TRITON") or Path(sys.prefix) / "oldest-triton")
VERSION = ".".join(map(str, OLDEST_TRITON))
pytestmark = [
    pytest.mark.skipif(
        not (FOLDER / ".complete").exists(), reason=f"no Triton {VERSION} beside: see install_oldest_triton.sh"
    ),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton is not interpreted (DS_ACCELERATOR)"),
]
# one launch forward and backward of every kernel, against float64 and twice for the same bits
INTERPRETED = (
    "test_attention_mse_triton.py::test_holds[twice_the_same]",
    "test_attention_mse_triton.py::test_as_near_to_float64_as_whole_matrices[(2, 1, 7, 33, 80, 80)-torch.float32]",
    "test_masked_mse_triton.py::test_each_gradient_alone",
    "test_prediction_divergence.py::test_blocks[jensen_0.9-triton-2.5-several]",
    "test_prediction_triton.py::test_float64_says_the_same[whole-2.0-options2-torch.float16]",
)


@pytest.fixture(autouse=True)
def comes_first(monkeypatch):
    """For processes that tests start."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER), str(ROOT)]))


def test_everything_else_agrees_on_which_one_that_is():
    assert f'"triton>={VERSION};' in (ROOT / "pyproject.toml").read_text()
    assert f"triton=={VERSION}.*" in HERE.joinpath("install_oldest_triton.sh").read_text()
    command = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith(f"{VERSION}.")


def test_kernels_give_the_right_numbers():
    chosen = [str(HERE / test) for test in INTERPRETED]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *chosen]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout, done.stdout


def test_the_largest_kernels_do_not_spill(compiled, beside_this):
    """At compute capability 8.0, where a thread's registers are scarcest."""
    attention, masked, prediction = (
        beside_this(f"test_{name}_compiled") for name in ("attention_mse", "masked_mse", "prediction")
    )
    jobs = [
        *(attention.job(compiled, label, 80, "backward_kernel", causal)
          for label, causal in (("BART-large", True), ("BlenderBot 3B width", False))),
        *masked.jobs(compiled, 80, ["fp16"]),
        *(prediction.job(compiled, kernel, 80) for kernel in prediction.KERNELS),
    ]  # fmt: skip
    reports = compiled.compile_reports(jobs)
    print("", *(report.line() for report in reports), sep="\n")
    assert all(report.triton.startswith(f"{VERSION}.") for report in reports)
    assert not [f"{report.line()}: {said}" for report in reports for said in report.complaints()]


def test_two_blocks_and_short_loops_at_every_benchmarked_shape(compiled, beside_this):
    occupancy = beside_this("test_occupancy_compiled")
    reports = compiled.compile_reports(list(occupancy.jobs(compiled, beside_this, ["float16"])))
    print("", *(report.line() for report in reports), sep="\n")
    assert all(report.triton.startswith(f"{VERSION}.") for report in reports)
    assert not occupancy.complaints(reports)
