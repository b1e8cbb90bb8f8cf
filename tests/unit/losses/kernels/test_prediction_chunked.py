"""Task and prediction from hidden states in blocks of the vocabulary, against float64 and the whole-matrix formulas."""

import math

import head_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import checkpoint

from distill_engine.losses.kernels import prediction_blocks, prediction_tokens
from distill_engine.losses.kernels.prediction import task_and_prediction_sums
from distill_engine.losses.kernels.prediction_blocks import WIDTH_STEP, vocabulary_blocks
from distill_engine.losses.kernels.prediction_chunked import TorchPointwise

run = cases.through(TorchPointwise())
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=[1, 4096, prediction_blocks.BLOCK_BYTES], ids=["narrowest", "some", "whole"])
def block_bytes(request, monkeypatch):
    """Blocks of 64 ids, of a few hundred, and everything in one."""
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("options", [{"bias": False}, {"masked_id": 1}, {"ignored": 0, "bias": False, "masked_id": 0}])
@pytest.mark.usefixtures("block_bytes")
def test_float64_says_the_same(dtype, temperature, options):
    cases.check_float64(run, cases.case(dtype, temperature=temperature, **options))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9)), st.integers(3, 400), st.integers(1, 20), st.integers(1, 20),
    st.integers(0, 9), st.integers(0, 99), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([1, 9000, 10**6]),
)  # fmt: skip
def test_any_shape(size, vocabulary, width, teacher_width, ignored, seed, temperature, block):
    one = cases.case(
        size=size, vocabulary=vocabulary, widths=(width, teacher_width), seed=seed, masked_id=1,
        temperature=temperature, ignored=min(ignored, size[0] * size[1] - 1),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction_blocks, "BLOCK_BYTES", block)
        cases.check_float64(run, one)


@pytest.mark.parametrize("vocabulary", [8008, 50265])
def test_real_vocabularies(vocabulary, monkeypatch):
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 2**20)
    cases.check_float64(run, cases.case(size=(2, 6), vocabulary=vocabulary, masked_id=1))


def test_errors_are_no_larger_than_those_of_whole_matrices(monkeypatch):
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 2**18)
    cases.check_no_worse_than_eager(run, task_and_prediction_sums)


@pytest.mark.parametrize("bad", [math.inf, math.nan, 3e38])
@pytest.mark.usefixtures("block_bytes")
def test_ignored_tokens_change_nothing(bad):
    cases.check_ignored_rows(run, bad)


@pytest.mark.parametrize(("size", "ignored"), [((2, 5), 10), ((0, 5), 0), ((2, 0), 0)], ids=["ignored", "B", "T"])
def test_nothing_to_learn(size, ignored):
    cases.check_nothing_to_learn(run, size, ignored)


@pytest.mark.usefixtures("block_bytes")
def test_task_without_a_teacher():
    cases.check_task_alone(run)


def test_loss_scale(monkeypatch):
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 2**20)
    cases.check_loss_scale(run)


@pytest.mark.parametrize("vocabulary", [130, 1024])
@pytest.mark.usefixtures("block_bytes")
def test_hits(vocabulary):
    cases.check_hits(run, vocabulary)


@pytest.mark.usefixtures("block_bytes")
def test_equal_bits():
    cases.check_repeats(run)


def test_a_label_outside_the_vocabulary():
    cases.check_label_outside(run)


@pytest.mark.parametrize("wanted", range(3))
def test_only_what_is_trained_gets_a_gradient(wanted):
    one = cases.case()
    expected = cases.gradients(one, run)[wanted]
    for number, tensor in enumerate(one.trained):
        tensor.requires_grad_(number == wanted)
    task, prediction, _ = one.sums(run)
    (task * cases.UPSTREAM[0] + prediction * cases.UPSTREAM[1]).backward()
    assert torch.equal(one.trained[wanted].grad, expected)
    assert all(tensor.grad is None for number, tensor in enumerate(one.trained) if number != wanted)


def test_activation_checkpointing():
    one = cases.case()

    def both(hidden):
        return run(hidden, *list(vars(one).values())[1:])[:2]

    def total(values):
        return values[0] * cases.UPSTREAM[0] + values[1] * cases.UPSTREAM[1]

    again = torch.autograd.grad(total(checkpoint(both, one.student_hidden, use_reentrant=False)), one.trained)
    assert all(torch.equal(a, b) for a, b in zip(again, cases.gradients(one, run), strict=True))


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [tensor for tensor in tree_flatten(made)[0] if isinstance(tensor, torch.Tensor)]
        self.bytes = max([self.bytes, *(tensor.untyped_storage().nbytes() for tensor in tensors)])
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_logits_never_exist_whole(dtype, monkeypatch):
    """64 tokens x 6007 ids: whole logits take 1.5 MB in float32; a model's block takes half of BLOCK_BYTES."""
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 2**18)
    monkeypatch.setattr(prediction_tokens, "TILE_BYTES", 2**15)
    one = cases.case(dtype, size=(4, 16), vocabulary=6007, widths=(4, 4))
    with Largest() as largest:
        cases.gradients(one, run)
    assert largest.bytes <= 2**17


def test_a_forward_pass_for_numbers_alone_keeps_nothing():
    one = cases.case()
    with torch.no_grad():
        values = one.sums(run)
    assert not any(value.requires_grad for value in values)
    assert [a.tolist() for a in values] == [a.tolist() for a in one.sums(run)]


@pytest.mark.parametrize(("vocabulary", "per_id"), [(1, 8), (63, 8), (8008, 16384), (50265, 4544), (50265, 10**9)])
def test_blocks_cover_the_vocabulary(vocabulary, per_id):
    blocks = vocabulary_blocks(vocabulary, per_id)
    assert [i for block in blocks for i in (block.start, block.stop)][1:-1] == [
        i for block in blocks[1:] for i in (block.start,) * 2
    ]
    assert blocks[0].start == 0 and blocks[-1].stop == vocabulary
    widths = [block.stop - block.start for block in blocks]
    assert all(width % WIDTH_STEP == 0 for width in widths[:-1]) and widths[-1] <= widths[0]
    assert widths[0] * per_id <= prediction_blocks.BLOCK_BYTES or widths[0] == WIDTH_STEP


def test_what_cannot_be_compared_is_refused():
    one = vars(cases.case())
    other = {"teacher_embedding": one["teacher_embedding"][:-1]}
    with pytest.raises(ValueError, match="student has 301 vocabulary entries, the teacher 300"):
        run(**one | other)
    with pytest.raises(ValueError, match="no output embedding of the teacher"):
        run(**one | {"teacher_embedding": None})
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        run(**one | {"temperature": 0.0})
