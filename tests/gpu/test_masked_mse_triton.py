"""Projection and squared error on a GPU: the compiled kernels at the models' shapes."""

import projected_mse as cases
import pytest
import torch
from torch.nn import functional

from distill_engine.losses.kernels.masked_mse import masked_mse_sum

triton = pytest.importorskip("triton", reason="Triton is not installed")
if triton.knobs.runtime.interpret:
    pytest.skip("Triton is in interpreter mode; set DS_ACCELERATOR=cuda to run this on a GPU", allow_module_level=True)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: these run the compiled kernels"),
]

from distill_engine.losses.kernels.masked_mse_triton import (  # noqa: E402 - after the check for triton
    projected_mse_sum,
    projected_mse_sums,
)

SHAPES = [(16, 128, 1280, 2560), (16, 128, 2560, 2560), (4, 1024, 1024, 1024), (3, 129, 80, 200), (16, 128, 2560, None)]


def case(batch, tokens, depth, width, dtype=torch.float16):
    return cases.case(tokens, depth, width, dtype=dtype, batch=batch, device="cuda")


def eager(student, weight, bias, teacher, mask, clamp):
    """What the kernels replace."""
    return masked_mse_sum(functional.linear(student, weight, bias), teacher, mask, clamp)


def by(way):
    """projected_mse_sum with the products of one way, whatever counts say."""

    def one_sum(student, weight, bias, teacher, mask, clamp):
        return projected_mse_sums([(student, weight, bias)], [teacher], mask, clamp, way).squeeze(0)

    return one_sum


@pytest.mark.parametrize("dtype", list(cases.TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", ["kernels", "library"])
def test_sum_and_gradients(way, shape, dtype):
    cases.check(by(way), case(*shape, dtype), 65504.0, upstream=1.0)


@pytest.mark.parametrize("tokens", [1, 7, 127, 129, 1000])
def test_token_counts(tokens):
    cases.check(projected_mse_sum, case(1, tokens, 320, 640), 2.3, upstream=-2.5)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_masked_tokens_change_nothing(bad, side):
    cases.check_masked_tokens_change_nothing(projected_mse_sum, case(4, 300, 320, 640), bad, side, 65504.0)


def test_small_gradients_survive_fp16_under_a_loss_scale():
    cases.check_small_gradients_under_a_loss_scale(projected_mse_sum, "cuda")


@pytest.mark.parametrize("dtype", list(cases.TOLERANCE))
def test_large_differences(dtype):
    cases.check_large_differences(projected_mse_sum, dtype, "cuda")


def test_the_same_inputs_give_the_same_bits():
    one = case(16, 128, 1280, 2560)
    first, again = (cases.computed(projected_mse_sum, one, 65504.0) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))


@pytest.mark.parametrize("way", ["kernels", "library"])
def test_nothing_waits_for_the_gpu(way):
    one = case(2, 128, 320, 640)
    cases.computed(by(way), one, 65504.0)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        cases.computed(by(way), one, 65504.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def peak_bytes(function, one) -> int:
    """Largest memory during forward and backward beside inputs and gradients."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gradients = torch.autograd.grad(function(*one.arguments(), 65504.0), one.learned())
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - sum(g.numel() * g.element_size() for g in gradients)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_extra_memory_is_a_third_of_eagers_or_one_weight_in_float32(shape):
    one = case(*shape)
    for function in (by("kernels"), eager):
        peak_bytes(function, one)  # compiled code and workspaces are not the loss's memory
    ours, theirs = peak_bytes(by("kernels"), one), peak_bytes(eager, one)
    assert ours < max(theirs / 3, 4 * one.weight.numel() + 2 * 2**21 + 2**20), (ours, theirs)
