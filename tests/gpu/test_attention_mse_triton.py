"""The fused attention term on a real GPU: full sizes, memory, no wait of the host for the device."""

import attention_cases
import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
triton = pytest.importorskip("triton", reason="Triton is not installed")
if triton.knobs.runtime.interpret:
    pytest.skip("Triton is in interpreter mode; set DS_ACCELERATOR=cuda to run this on a GPU", allow_module_level=True)

from distill_engine.losses.kernels.attention_mse import attention_mse_sum, pair_mask  # noqa: E402
from distill_engine.losses.kernels.attention_mse_triton import attention_mse_sums  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SHAPES = {
    "blenderbot-encoder": ((16, 32, 128, 128, 80, 80), {}),
    "blenderbot-decoder": ((16, 32, 100, 100, 80, 80), {"causal": True}),
    "blenderbot-cross": ((16, 32, 32, 128, 40, 80), {}),
    "bart-encoder": ((2, 16, 1024, 1024, 64, 64), {}),
    "bart-decoder": ((4, 16, 142, 142, 64, 64), {"causal": True}),
    "largest-heads": ((2, 4, 129, 127, 256, 200), {}),
    "one-query": ((4, 3, 1, 1000, 96, 16), {}),
}


@pytest.fixture
def exact_products(monkeypatch):
    """What float32 is compared with must not use TF32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masks", ["random", "right"])
@pytest.mark.parametrize("name", SHAPES)
def test_as_near_to_float64_as_whole_matrices(exact_products, name, masks, dtype):
    shape, options = SHAPES[name]
    case = attention_cases.make(*shape, dtype=dtype, masks=masks, clamp=2.0, device="cuda", layers=2, **options)
    attention_cases.check(attention_mse_sums, case)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_masked_places_may_hold_anything(bad):
    attention_cases.check_masked_places_may_hold_anything(attention_mse_sums, bad, "cuda")


@pytest.mark.parametrize(
    "claim",
    ["small_gradients_survive", "clamp_edges", "nan_is_not_hidden", "twice_the_same", "nothing_to_do",
     "recomputed_activations", "no_gradient_when_validating"],
)  # fmt: skip
def test_holds(claim):
    getattr(attention_cases, f"check_{claim}")(attention_mse_sums, "cuda")


def test_the_same_bits_at_full_size():
    case = attention_cases.make(16, 32, 128, 128, 80, 80, dtype=torch.float16, device="cuda", layers=2)
    first, second = (attention_cases.ours(attention_mse_sums, case, torch.ones(2, device="cuda")) for _ in range(2))
    assert torch.equal(first[0], second[0]) and all(map(torch.equal, first[1], second[1]))


def test_the_host_never_waits_for_the_device():
    case = attention_cases.make(2, 2, 33, 65, 16, 24, dtype=torch.float16, device="cuda", layers=2)
    upstream = torch.ones(2, device="cuda")
    attention_cases.ours(attention_mse_sums, case, upstream)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention_cases.ours(attention_mse_sums, case, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_a_twentieth_of_whole_matrices():
    """Forward and backward at BlenderBot's shape; the gradients themselves are part of neither."""
    case = attention_cases.make(16, 32, 128, 128, 80, 80, dtype=torch.float16, masks="none", device="cuda")
    upstream = torch.ones(1, device="cuda")
    mask = pair_mask(case.query_mask, case.key_mask, False)

    def whole():
        value = attention_mse_sum(case.students[0], case.teachers[0], mask, None)
        return torch.autograd.grad(value, case.leaves)

    def extra(call) -> int:
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients = call()
        return torch.cuda.max_memory_allocated() - before - sum(g.nbytes for g in gradients)

    fused = extra(lambda: attention_cases.ours(attention_mse_sums, case, upstream)[1])
    eager = extra(whole)
    print(f"peak extra memory: fused {fused / 1e6:.2f} MB, whole matrices {eager / 1e6:.0f} MB")
    assert fused < 0.05 * eager
