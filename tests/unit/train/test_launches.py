"""How many small operations losses and meter start per micro-batch, with the BlenderBot 3B recipe's terms."""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton is not interpreted (DS_ACCELERATOR)", allow_module_level=True)

import loss_launches

FORWARD, WITH_BACKWARD = 95, 120  # each launch costs a GPU about as much as a small kernel runs


@pytest.fixture(scope="module")
def parts():
    return loss_launches.count()


def test_launches_per_micro_batch(parts):
    counted = loss_launches.summary(parts)
    print(counted)
    forward = sum(number for part, number in counted["by_part"].items() if part != "backward")
    assert forward <= FORWARD and counted["loss_launches_per_micro_batch"] <= WITH_BACKWARD
    assert counted["by_part"]["meter"] <= 25 and counted["by_part"]["divisors"] <= 15
    assert counted["kernels"] >= 3 + 13, "the fused kernels were counted apart"


def test_accumulating_counts_nothing_twice(parts):
    """What `divisors` has counted is not counted again by terms and meter."""
    assert parts["divisors"].small["ne"] == 2, "one mask of each stack"
    assert parts["meter"].small["ne"] == 2, "only which numbers are NaN, and which are not finite"
