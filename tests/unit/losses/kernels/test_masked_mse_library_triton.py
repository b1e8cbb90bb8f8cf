"""Projections whose products the library forms: numbers, memory, and when that way is taken."""

import math
from dataclasses import replace

import projected_mse as cases
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton", reason="Triton is not installed")
if not (triton.knobs.runtime.interpret or torch.cuda.is_available()):
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)

from distill_engine.losses.kernels import masked_mse_triton  # noqa: E402 - after the check for triton
from distill_engine.losses.kernels.masked_mse_triton import projected_mse_sums  # noqa: E402
from distill_engine.losses.kernels.projection_ways import faster_way, seconds  # noqa: E402


def library(student, weight, bias, teacher, mask, clamp):
    """projected_mse_sum that way."""
    return projected_mse_sums([(student, weight, bias)], [teacher], mask, clamp, "library").squeeze(0)


@pytest.mark.parametrize(("tokens", "depth", "width"), [(1, 16, 24), (7, 24, 16), (129, 40, 300), (300, 16, 20)])
@pytest.mark.parametrize("dtype", list(cases.TOLERANCE))
@pytest.mark.parametrize("clamp", [None, 0.9])
def test_as_near_to_float64_as_the_kernels(tokens, depth, width, dtype, clamp):
    cases.check(library, cases.case(tokens, depth, width, dtype=dtype, batch=2), clamp, upstream=-2.5)


def test_no_bias_and_no_tokens():
    cases.check(library, replace(cases.case(129, 16, 24), bias=None), 1.0)
    cases.check(library, cases.case(5, 8, 6, batch=0), 1.0)
    cases.check(library, cases.case(5, 8, 6, kept=0.0), 1.0)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_masked_tokens_change_nothing(bad, side):
    cases.check_masked_tokens_change_nothing(library, cases.case(101, 12, 12, kept=0.5), bad, side, 1.0)


def test_each_gradient_alone():
    cases.check_each_gradient_alone(library, cases.case(101, 12, 12))


def test_small_gradients_survive_fp16_under_a_loss_scale():
    cases.check_small_gradients_under_a_loss_scale(library)


@pytest.mark.parametrize("dtype", list(cases.TOLERANCE))
def test_large_differences(dtype):
    cases.check_large_differences(library, dtype)


def test_two_passes_through_one_graph_and_pairs_of_one_call():
    pairs = [cases.case(50, 12, 20, dtype=torch.float16, seed=seed) for seed in (1, 2)]
    students = [(one.student, one.weight, one.bias) for one in pairs]
    teachers, learned = [one.teacher for one in pairs], [x for one in pairs for x in one.learned()]
    total = projected_mse_sums(students, teachers, pairs[0].mask, 0.9, "library")
    upstream = torch.tensor([2.0, -3.0])
    first = torch.autograd.grad(total, learned, upstream, retain_graph=True)
    again = torch.autograd.grad(total, learned, upstream)
    assert all(map(torch.equal, first, again))
    alone = [
        cases.computed(library, replace(one, mask=pairs[0].mask), 0.9, factor)
        for one, factor in zip(pairs, upstream.tolist(), strict=True)
    ]
    assert torch.equal(total, torch.stack([value for value, _ in alone]))
    assert all(map(torch.equal, first, [gradient for _, gradients in alone for gradient in gradients]))


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket is torch.ops.aten.mm
        return function(*args, **(kwargs or {}))


def test_three_products_and_one_without_gradients():
    one = cases.case(100, 16, 24)
    with Products() as seen:
        cases.computed(library, one, 1.0)
    assert seen.count == 3
    with torch.no_grad(), Products() as seen:
        assert not library(*one.arguments(), 1.0).requires_grad
    assert seen.count == 1


# ---- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "depth", "width", "way"),
    [(2048, 2560, 2560, "library"), (2048, 1280, 2560, "kernels"), (4096, 512, 1024, "kernels"), (0, 8, 8, "kernels")],
)
def test_by_count(tokens, depth, width, way):
    microseconds = {one: round(seconds(one, tokens, depth, width) * 1e6) for one in ("kernels", "library")}
    print(f"{tokens} x {depth} -> {width}: {microseconds}")
    assert faster_way(tokens, depth, width) == way


@pytest.mark.parametrize(
    ("dtype", "works", "way"),
    [(torch.float16, True, "library"), (torch.float16, False, "kernels"), (torch.float32, True, "kernels")],
)
def test_only_where_pytorch_forms_such_products(monkeypatch, dtype, works, way):
    """On a GPU that need not be here: tensors without memory that say they are there."""

    class There(torch.Tensor):
        is_cuda = True

    student = torch.empty(2048, 2560, dtype=dtype, device="meta").as_subclass(There)
    weight, mask = torch.empty(2560, 2560, dtype=dtype, device="meta"), torch.empty(2048, device="meta")
    monkeypatch.setattr(masked_mse_triton, "unrounded", lambda device, dtype: works)
    assert masked_mse_triton._way(student, weight, mask) == way
    assert masked_mse_triton._way(student, None, mask) == "kernels"


def test_a_cpu_and_pairs_without_a_projection_stay_with_the_kernels():
    one = cases.case(33, 16, None)
    assert torch.equal(library(*one.arguments(), 1.0), masked_mse_triton.projected_mse_sum(*one.arguments(), 1.0))
    student, weight = (torch.zeros(size, 2560, dtype=torch.float16) for size in (2048, 2560))
    assert masked_mse_triton._way(student, weight, torch.zeros(2048)) == "kernels"
