"""Task and prediction from hidden states on a GPU: same numbers, bounded memory, never waits for the device."""

import math

import head_cases as cases
import pytest
import torch

from distill_engine.losses.kernels.dispatch import vocabulary_sums
from distill_engine.losses.kernels.prediction import task_and_prediction_sums
from distill_engine.registry import load
from distill_engine.values import OutputHead

triton = pytest.importorskip("triton", reason="Triton is not installed")
if triton.knobs.runtime.interpret:
    pytest.skip("Triton is in interpreter mode; set DS_ACCELERATOR=cuda to run this on a GPU", allow_module_level=True)
prediction_triton = pytest.importorskip("distill_engine.losses.kernels.prediction_triton", reason="no Triton here")
run = cases.through(prediction_triton.TritonPointwise())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHAPES = [(8008, (16, 128)), (50265, (4, 142))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("vocabulary", [301, 8008, 50265])
def test_float64_says_the_same(dtype, temperature, vocabulary):
    options = {"size": (2, 40), "vocabulary": vocabulary, "widths": (64, 128), "masked_id": 1, "device": "cuda"}
    cases.check_float64(run, cases.case(dtype, temperature=temperature, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "total_variation", "logit_mse"])
def test_other_divergences_are_what_torch_computes(dtype, name):
    draw = torch.Generator("cuda").manual_seed(2)

    def head(width: int) -> OutputHead:
        states = torch.randn(2, 40, width, generator=draw, device="cuda", dtype=dtype) / width**0.5
        return OutputHead(states, torch.randn(8008, width, generator=draw, device="cuda", dtype=dtype), None, 1)

    student, teacher = head(64), head(128)
    labels = torch.randint(2, 8008, (2, 40), generator=draw, device="cuda")
    labels[1, 30:] = -100
    trained = student.hidden.requires_grad_(), student.embedding.requires_grad_()
    found = []
    for implementation in ("triton", "chunked"):
        task, divergence, _ = vocabulary_sums(implementation, student, teacher, labels, 2.0, load("divergences", name))
        found.append([divergence, *torch.autograd.grad(task + 2.0 * divergence, trained)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2 if dtype == torch.float16 else 1e-4, atol=1e-3)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_ignored_tokens_get_no_gradient(bad):
    one = cases.case(torch.float16, size=(2, 40), vocabulary=8008, device="cuda")
    with torch.no_grad():
        one.student_hidden[~one.kept] = bad
        one.teacher_hidden[~one.kept] = bad
    found = cases.gradients(one, run)
    assert (found[0][~one.kept] == 0).all() and all(torch.isfinite(gradient).all() for gradient in found)


def test_equal_bits():
    one = cases.case(torch.float16, size=(8, 100), vocabulary=50265, widths=(64, 64), device="cuda")
    for mine, theirs in zip(cases.gradients(one, run), cases.gradients(one, run), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("vocabulary", "size"), SHAPES)
def test_memory_and_no_waiting(vocabulary, size):
    """Under a fifth of what whole logits take beside the gradients, and no wait for the device in a whole step."""
    one = cases.case(torch.float16, size, vocabulary, (1024, 1024), bias=False, device="cuda")

    def eager():
        student = one.student_hidden @ one.student_embedding.T
        teacher = one.teacher_hidden @ one.teacher_embedding.T
        task, prediction = task_and_prediction_sums(student, teacher, one.labels)
        return torch.autograd.grad(task + prediction, one.trained)

    def ours():
        return cases.gradients(one, run, (1.0, 1.0))

    def extra(step) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        made = sum(gradient.nbytes for gradient in step())
        return torch.cuda.max_memory_allocated() - before - made

    ours()  # compiles
    assert extra(ours) < 0.2 * extra(eager)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours()
    finally:
        torch.cuda.set_sync_debug_mode("default")
