"""Projection and squared error in chunks of tokens on a CPU: float64 references, memory, what is not computed."""

import math
from dataclasses import replace

import projected_mse as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from distill_engine.losses.kernels import masked_mse_chunked
from distill_engine.losses.kernels.masked_mse import masked_mse_sum
from distill_engine.losses.kernels.masked_mse_chunked import projected_mse_sum


def eager(student, weight, bias, teacher, mask, clamp):
    """What the chunks replace."""
    return masked_mse_sum(functional.linear(student, weight, bias), teacher, mask, clamp)


@pytest.mark.parametrize("tokens", [1, 7, 127, 129, 1000])
@pytest.mark.parametrize(("depth", "width"), [(16, 24), (40, 40), (33, None)])
@pytest.mark.parametrize("clamp", [None, 1.0])
def test_token_counts(tokens, depth, width, clamp):
    cases.check(projected_mse_sum, cases.case(tokens, depth, width), clamp, upstream=-2.5)


@pytest.mark.parametrize("dtype", list(cases.TOLERANCE))
@pytest.mark.parametrize("width", [100, None])
def test_float_types(dtype, width):
    cases.check(projected_mse_sum, cases.case(129, 48, width, dtype=dtype, batch=2), 0.9, upstream=65536.0 / 1000)


def test_a_student_half_as_wide_as_the_teacher():
    cases.check(projected_mse_sum, cases.case(7, 1280, 2560), 65504.0)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    st.integers(0, 3), st.integers(0, 300), st.integers(1, 20), st.one_of(st.none(), st.integers(1, 20)),
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


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("width", [12, None])
def test_masked_tokens_change_nothing(bad, side, width):
    cases.check_masked_tokens_change_nothing(projected_mse_sum, cases.case(201, 12, width, kept=0.5), bad, side, 1.0)


@pytest.mark.parametrize("width", [12, None])
def test_each_gradient_alone(width):
    cases.check_each_gradient_alone(projected_mse_sum, cases.case(201, 12, width))


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
    assert not any(x.is_contiguous() for x in (turned.student, turned.teacher, turned.weight))
    cases.check(projected_mse_sum, turned, 1.0)


@pytest.mark.parametrize("clamp", [None, 1.0])
def test_the_error_is_no_larger_than_eager_pytorchs(clamp):
    one = cases.case(1000, 64, 96)
    right = [*cases.exact(one, clamp, 1.0)[1]]
    ours, plain = (cases.computed(function, one, clamp)[1] for function in (projected_mse_sum, eager))
    for mine, theirs, truth in zip(ours, plain, right, strict=True):
        assert cases.largest_error(mine, truth) <= 2 * cases.largest_error(theirs, truth) + 1e-7


def test_a_retained_graph_gives_the_same_gradients_again():
    one = cases.case(201, 12, 20)
    total = projected_mse_sum(*one.arguments(), 1.0)
    first = torch.autograd.grad(total * 3.0, one.learned(), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(total * 3.0, one.learned())
    for a, b, c in zip(first, second, kept, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_under_activation_checkpointing():
    one = cases.case(201, 12, 20)
    plain = cases.computed(projected_mse_sum, one, 1.0)
    again = cases.computed(lambda *inputs: checkpoint(projected_mse_sum, *inputs, use_reentrant=False), one, 1.0)
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, called, types, arguments=(), keywords=None):
        self.count += called.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return called(*arguments, **(keywords or {}))


@pytest.mark.parametrize(("asking", "products"), [("", 1), ("student", 2), ("weight", 2), ("student weight", 3)])
def test_products_are_formed_only_for_what_is_asked(asking, products):
    one = cases.case(100, 16, 24)
    names = ("student", "weight", "bias")
    one = replace(one, **{n: getattr(one, n).detach().requires_grad_(n in asking.split()) for n in names})
    with Products() as seen:
        total = projected_mse_sum(*one.arguments(), 1.0)
        assert total.requires_grad == bool(asking)
        if asking:
            torch.autograd.grad(total, one.learned())
    assert seen.count == products


def test_without_gradients_none_are_formed():
    with torch.no_grad(), Products() as seen:
        assert not projected_mse_sum(*cases.case(100, 16, 24).arguments(), 1.0).requires_grad
    assert seen.count == 1


def peak_bytes(work) -> int:
    """Largest sum of live allocations that `work` made, without the results that it returns."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        results = work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = largest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        largest = max(largest, live)
    return largest - sum(result.numel() * result.element_size() for result in results)


@pytest.mark.parametrize("width", [1024, None])
def test_peak_memory_beside_the_gradients_is_a_tenth_of_eagers(width):
    one = cases.case(1024, 1024, width, batch=4)
    function = masked_mse_sum if width is None else eager
    arguments = one.arguments() if width else (one.student, one.teacher, one.mask)
    ours, theirs = (
        peak_bytes(lambda f=f, given=given: torch.autograd.grad(f(*given, 65504.0), one.learned()))
        for f, given in ((projected_mse_sum, one.arguments()), (function, arguments))
    )
    assert theirs >= 4 * 1024 * 1024 * 4  # at least one whole difference: the measurement sees it
    assert ours < 0.1 * theirs, (ours, theirs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": None, "bias": None}, "weight None"),
        ({"weight": None}, "without a weight no bias"),
        ({"bias": torch.zeros(5)}, "bias [5]"),
        ({"mask": torch.ones(1, 4, dtype=torch.bool)}, "mask [1, 4]"),
        ({"mask": torch.ones(1, 3)}, "mask is torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    with pytest.raises(ValueError, match="masked squared error") as refused:
        projected_mse_sum(*replace(cases.case(3, 8, 6), **change).arguments(), None)
    assert said in str(refused.value)


def test_a_gpus_chunks_give_the_same_numbers(monkeypatch):
    """Fewer and larger ones: one where a CPU takes six."""
    one = cases.case(1000, 40, 24)
    (value, small), gpu = cases.computed(projected_mse_sum, one, 0.9), torch.device("cuda")
    sizes, at_once = [], masked_mse_chunked._at_once

    def as_on_a_gpu(tokens, device):
        sizes.append(at_once(tokens, gpu))
        return sizes[-1]

    monkeypatch.setattr(masked_mse_chunked, "_at_once", as_on_a_gpu)
    cases.check(projected_mse_sum, one, 0.9)
    assert set(sizes) == {4096} and at_once(192, torch.device("cpu")) == 192
    again, large = cases.computed(projected_mse_sum, one, 0.9)
    for mine, theirs in zip([again, *large], [value, *small], strict=True):
        assert cases.largest_error(mine, theirs) < 1e-5
