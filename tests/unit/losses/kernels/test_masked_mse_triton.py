"""The Triton path of projection and squared error, in Triton's interpreter where there is no GPU."""

import math
from dataclasses import replace

import projected_mse as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from distill_engine.losses.kernels.masked_mse import masked_mse_sum

triton = pytest.importorskip("triton", reason="Triton is not installed")
if not (triton.knobs.runtime.interpret or torch.cuda.is_available()):
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)

from distill_engine.losses.kernels import (  # noqa: E402 - after the check for triton
    masked_mse_chunked,
    masked_mse_launches_triton,
    masked_mse_triton,
)
from distill_engine.losses.kernels.masked_mse_triton import chunk_tokens, projected_mse_sum  # noqa: E402


@pytest.mark.parametrize(
    ("tokens", "depth", "width"),
    [(1, 16, 24), (7, 24, 16), (127, 40, 24), (129, 16, 130), (1000, 16, 20), (7, 17, None), (1000, 33, None)],
)
@pytest.mark.parametrize("clamp", [None, 0.9])
def test_token_counts(tokens, depth, width, clamp):
    cases.check(projected_mse_sum, cases.case(tokens, depth, width), clamp, upstream=-2.5)


@pytest.mark.parametrize("dtype", list(cases.TOLERANCE))
@pytest.mark.parametrize("width", [100, None])
def test_float_types(dtype, width):
    cases.check(projected_mse_sum, cases.case(129, 48, width, dtype=dtype, batch=2), 0.9, upstream=65536.0 / 1000)


def test_a_student_half_as_wide_as_the_teacher():
    cases.check(projected_mse_sum, cases.case(7, 320, 640, dtype=torch.float16), 65504.0)


@settings(deadline=None, derandomize=True, max_examples=12)
@given(
    st.integers(0, 3), st.integers(0, 70), st.integers(1, 40), st.one_of(st.none(), st.integers(1, 140)),
    st.sampled_from([None, 0.7, 65504.0]), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 99),
)  # fmt: skip
def test_any_shape(batch, tokens, depth, width, clamp, kept, seed):
    cases.check(projected_mse_sum, cases.case(tokens, depth, width, batch=batch, kept=kept, seed=seed), clamp)


@pytest.mark.parametrize("width", [8, None])
@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (2, 0), (2, 5)])
def test_without_a_token_that_counts_everything_is_zero(batch, tokens, width):
    one = cases.case(tokens, 8, width, batch=batch, kept=0.0)
    value, gradients = cases.computed(projected_mse_sum, one, 1.0)
    assert value.item() == 0
    assert [g.shape for g in gradients] == [x.shape for x in one.learned()]
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("width", [12, None])
def test_masked_tokens_change_nothing(bad, side, width):
    cases.check_masked_tokens_change_nothing(projected_mse_sum, cases.case(101, 12, width, kept=0.5), bad, side, 1.0)


@pytest.mark.parametrize("width", [12, None])
def test_each_gradient_alone(width):
    cases.check_each_gradient_alone(projected_mse_sum, cases.case(101, 12, width))


def test_small_gradients_survive_fp16_under_a_loss_scale():
    cases.check_small_gradients_under_a_loss_scale(projected_mse_sum)


@pytest.mark.parametrize("dtype", list(cases.TOLERANCE))
def test_large_differences(dtype):
    cases.check_large_differences(projected_mse_sum, dtype)


def test_no_bias():
    cases.check(projected_mse_sum, replace(cases.case(129, 16, 24), bias=None), 1.0)


def test_views_and_transposed_weights():
    one = cases.case(50, 24, 24, batch=3)
    turned = replace(
        one,
        student=one.student.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(),
        teacher=one.teacher.repeat(1, 1, 2)[..., ::2],
        weight=one.weight.detach().T.contiguous().T.requires_grad_(),
    )
    cases.check(projected_mse_sum, turned, 1.0)


@pytest.mark.parametrize("dtype", list(cases.TOLERANCE))
def test_chunks_of_tokens_add_up(monkeypatch, dtype):
    one = cases.case(300, 40, 24, dtype=dtype)
    whole = cases.computed(projected_mse_sum, one, 0.9)
    launches = []
    launch = masked_mse_triton.launch_projected
    monkeypatch.setattr(masked_mse_triton, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(
        masked_mse_triton, "launch_projected", lambda *given, **named: launches.append(launch(*given, **named))
    )
    split = cases.computed(projected_mse_sum, one, 0.9)
    rows = masked_mse_launches_triton.tiles_of(dtype).rows
    assert len(launches) == 1 + math.ceil(300 / rows) > 2  # the sum at once, the slope in chunks
    assert torch.equal(whole[0], split[0])
    cases.check(projected_mse_sum, one, 0.9)
    for mine, theirs in zip(split[1], whole[1], strict=True):
        assert cases.largest_error(mine, theirs) <= cases.TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("tokens", "width", "multiple", "sums"),
    [(1, 16, 128, 0), (2048, 2560, 128, 0), (2**20, 1024, 128, 2**21), (100, 10**7, 64, 0), (0, 8, 64, 0)],
)
def test_a_chunk_is_whole_tiles_and_not_much_larger_than_its_bound(tokens, width, multiple, sums):
    step = chunk_tokens(tokens, width, multiple, sums)
    assert step % multiple == 0
    assert step * width <= masked_mse_triton.CHUNK_ELEMENTS or step == multiple
    assert math.ceil(tokens / step) <= math.ceil(tokens * width / masked_mse_triton.CHUNK_ELEMENTS) + 1 or (
        step == multiple
    )


@pytest.mark.parametrize("sums", [0, 10**6])
def test_one_chunk_where_adding_up_would_take_more_than_it_saves(sums):
    """640 tokens of 4096 are 2^19 elements more than a chunk may be."""
    assert chunk_tokens(640, 4096, 128, sums) == (640 if sums >= 2**19 else 384)


@pytest.mark.parametrize(("tokens", "depth", "width"), [(2048, 2560, 2560), (2048, 1280, 2560), (4096, 512, 1024)])
def test_beside_the_gradients_less_than_a_fifth_of_eagers_memory(monkeypatch, tokens, depth, width):
    for launch in ("launch_projected", "launch_weight_gradient"):
        monkeypatch.setattr(masked_mse_triton, launch, lambda *given, **named: None)
    ours, theirs = (cases.extra_bytes(function, tokens, depth, width) for function in (projected_mse_sum, cases.eager))
    assert 0 < ours < 0.15 * theirs
    assert ours < 1.05 * 2 * tokens * width  # all slopes at once or less, and partial sums of the bias


def test_the_projection_is_not_rounded_before_the_difference():
    one = cases.case(129, 64, 48, dtype=torch.float16)
    one.teacher.copy_((one.student @ one.weight.T + one.bias).detach())  # what is left is rounding
    right = cases.exact(one, None, 1.0)[0]
    rounded = masked_mse_sum(functional.linear(*one.arguments()[:3]), one.teacher, one.mask, None)
    ours = projected_mse_sum(*one.arguments(), None)
    assert cases.largest_error(ours, right) < 1e-3 < cases.largest_error(rounded, right)


def test_the_error_is_no_larger_than_eager_pytorchs():
    one = cases.case(300, 64, 96)

    def eager(student, weight, bias, teacher, mask, clamp):
        return masked_mse_sum(functional.linear(student, weight, bias), teacher, mask, clamp)

    right = cases.exact(one, 0.9, 1.0)[1]
    ours, plain = (cases.computed(function, one, 0.9)[1] for function in (projected_mse_sum, eager))
    for mine, theirs, truth in zip(ours, plain, right, strict=True):
        assert cases.largest_error(mine, truth) <= 2 * cases.largest_error(theirs, truth) + 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_chunked_path_gives_the_same_numbers(dtype):
    one = cases.case(200, 40, 56, dtype=dtype)
    ours, theirs = (
        cases.computed(function, one, 0.9) for function in (projected_mse_sum, masked_mse_chunked.projected_mse_sum)
    )
    for mine, other in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True):
        assert cases.largest_error(mine, other) <= cases.TOLERANCE[dtype]


def test_the_same_inputs_give_the_same_bits_twice():
    one = cases.case(300, 40, 24, dtype=torch.float16)
    total = projected_mse_sum(*one.arguments(), 0.9)
    first = torch.autograd.grad(total, one.learned(), retain_graph=True)
    again = torch.autograd.grad(total, one.learned())
    assert torch.equal(total, projected_mse_sum(*one.arguments(), 0.9))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_under_activation_checkpointing():
    one = cases.case(101, 12, 20)
    plain = cases.computed(projected_mse_sum, one, 1.0)
    again = cases.computed(lambda *inputs: checkpoint(projected_mse_sum, *inputs, use_reentrant=False), one, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))


def test_without_gradients_only_the_sum_is_launched(monkeypatch):
    launched = []
    launch = masked_mse_triton.launch_projected

    def watched(*given, **named):
        launched.append(sorted(named))
        launch(*given, **named)

    monkeypatch.setattr(masked_mse_triton, "launch_projected", watched)
    with torch.no_grad():
        assert not projected_mse_sum(*cases.case(100, 16, 24).arguments(), 1.0).requires_grad
    assert launched == [["partial"]]


@pytest.mark.parametrize(("student", "weight"), [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_other_float_types_are_refused(student, weight):
    one = cases.case(3, 8, 6)
    wrong = replace(one, student=one.student.to(student), weight=one.weight.to(weight))
    with pytest.raises(ValueError, match=r"masked squared error.*float16, bfloat16 or float32"):
        projected_mse_sum(*wrong.arguments(), None)
