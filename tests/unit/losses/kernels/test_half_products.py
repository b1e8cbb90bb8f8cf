"""Adding half-precision products to float32 totals with PyTorches that can and cannot do it without rounding."""

import pytest
import torch

from distill_engine.losses.kernels import half_products
from distill_engine.losses.kernels.half_products import add_product_

HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def forgetful():
    """What was found out is forgotten before and after."""
    half_products._adding.cache_clear()
    yield
    half_products._adding.cache_clear()


def exact(left, right):
    return left.float() @ right.float()


def pretend(monkeypatch, name, refuses):
    """torch.addmm or torch.mm with out_dtype, as on a GPU; refuses: what it raises there. Returns the calls."""
    calls, plain = [], getattr(torch, name)

    def stand_in(*tensors, out_dtype=None, out=None):
        if out_dtype is None:
            return plain(*tensors)
        calls.append(tensors)
        if refuses is not None:
            raise refuses("self and mat2 must have the same dtype, but got Float and Half")
        result = exact(*tensors[-2:]) if len(tensors) == 2 else tensors[0] + exact(*tensors[1:])
        return result if out is None else out.copy_(result)

    monkeypatch.setattr(torch, name, stand_in)
    return calls


def added(dtype):
    """Error of a total of 1 plus two products, as a part of the largest element."""
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(5, 7, 7, generator=draw).to(dtype)[n] for n in (0, 1))
    total = torch.ones(7, 7)
    for _ in range(2):
        add_product_(total, left, right)
    wanted = 1 + 2 * (left.double() @ right.double())
    return ((total.double() - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_in_one_call_where_a_float32_total_is_taken(monkeypatch, dtype):
    calls, other = pretend(monkeypatch, "addmm", None), pretend(monkeypatch, "mm", None)
    assert added(dtype) < 1e-6 and len(calls) == 3 and not other  # one of them to find out


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("refusal", [RuntimeError, TypeError, NotImplementedError])
def test_in_two_calls_where_it_is_refused(monkeypatch, dtype, refusal):
    calls, other = pretend(monkeypatch, "addmm", refusal), pretend(monkeypatch, "mm", None)
    assert added(dtype) < 1e-6 and len(calls) == 1 and len(other) == 3


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_rounded_where_nothing_else_is_there(monkeypatch, dtype):
    calls, other = pretend(monkeypatch, "addmm", RuntimeError), pretend(monkeypatch, "mm", TypeError)
    assert 1e-6 < added(dtype) < 1e-2 and len(calls) == len(other) == 1


def test_running_out_of_memory_is_no_answer(monkeypatch):
    pretend(monkeypatch, "addmm", torch.OutOfMemoryError)
    with pytest.raises(torch.OutOfMemoryError):
        added(torch.float16)


def test_as_this_machine_has_it():
    assert all(added(dtype) < 1e-2 for dtype in HALF)
    assert added(torch.float32) < 1e-6
