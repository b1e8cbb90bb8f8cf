"""The Triton kernels of task and prediction in Triton's interpreter: against float64, and against the torch path."""

import math
import os

import head_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.losses.kernels import prediction_blocks
from distill_engine.losses.kernels.prediction import task_and_prediction_sums
from distill_engine.losses.kernels.prediction_chunked import TorchPointwise

prediction_triton = pytest.importorskip("distill_engine.losses.kernels.prediction_triton", reason="no Triton here")
run, torch_run = cases.through(prediction_triton.TritonPointwise()), cases.through(TorchPointwise())
pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"),
    # numpy, at masked lanes and ignored tokens
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]


DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = {"size": (1, 4), "vocabulary": 131, "ignored": 1}  # the interpreter takes milliseconds per program


@pytest.fixture(params=[1, prediction_blocks.BLOCK_BYTES], ids=["narrowest", "whole"])
def block_bytes(request, monkeypatch):
    """Blocks of 64 ids, and everything in one block of three programs per token."""
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", request.param)
    monkeypatch.setattr(prediction_triton, "_MOST_COLUMNS", 64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("temperature", "options"), [(2.0, {"bias": False}), (1.0, {"masked_id": 1}), (2.0, {"masked_id": 1})]
)
@pytest.mark.usefixtures("block_bytes")
def test_float64_says_the_same(dtype, temperature, options):
    cases.check_float64(run, cases.case(dtype, temperature=temperature, **SMALL, **options))


@settings(deadline=None, derandomize=True, max_examples=8)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3)), st.integers(3, 200), st.integers(1, 20), st.integers(0, 4),
    st.integers(0, 99), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([1, 10**6]),
)  # fmt: skip
def test_any_shape(size, vocabulary, width, ignored, seed, temperature, block):
    one = cases.case(
        size=size, vocabulary=vocabulary, widths=(width, 9), seed=seed, masked_id=1, temperature=temperature,
        ignored=min(ignored, size[0] * size[1] - 1),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction_blocks, "BLOCK_BYTES", block)
        cases.check_float64(run, one)


@pytest.mark.parametrize("vocabulary", [8008, 50265])
def test_real_vocabularies(vocabulary, monkeypatch):
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 2**20)
    cases.check_float64(run, cases.case(size=(1, 2), vocabulary=vocabulary, masked_id=1, ignored=0))


def test_errors_are_no_larger_than_those_of_whole_matrices(monkeypatch):
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 2**17)
    cases.check_no_worse_than_eager(run, task_and_prediction_sums, (2, 8))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_ignored_tokens_change_nothing(bad):
    cases.check_ignored_rows(run, bad, **SMALL)


@pytest.mark.parametrize(("size", "ignored"), [((2, 3), 6), ((0, 5), 0)], ids=["ignored", "empty"])
def test_nothing_to_learn(size, ignored):
    cases.check_nothing_to_learn(run, size, ignored)


@pytest.mark.usefixtures("block_bytes")
def test_task_without_a_teacher():
    cases.check_task_alone(run, **SMALL)


def test_loss_scale():
    cases.check_loss_scale(run, (2, 8))


@pytest.mark.usefixtures("block_bytes")
def test_hits():
    cases.check_hits(run, 131, (1, 10))


@pytest.mark.usefixtures("block_bytes")
def test_equal_bits():
    cases.check_repeats(run, **SMALL)


def test_a_label_outside_the_vocabulary():
    cases.check_label_outside(run)


def test_the_torch_path_gives_the_same_numbers():
    """Fp16 logits and their gradients are rounded at the same places: nearly every bit agrees."""
    one = cases.case(torch.float16, vocabulary=777, masked_id=0, temperature=2.0)
    for mine, theirs in zip(one.sums(run), one.sums(torch_run), strict=True):
        assert mine.item() == pytest.approx(theirs.item(), rel=1e-6) if mine.ndim == 0 else torch.equal(mine, theirs)
    for mine, theirs in zip(cases.gradients(one, run), cases.gradients(one, torch_run), strict=True):
        assert cases.error(mine, theirs.double()) < 1e-3
