"""Products by either library are the same products."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from distill_engine.arithmetic import products

ROWS, INNER, COLUMNS = 240, 288, 256  # large enough for oneDNN


def able() -> bool:
    return products._works()


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.skipif(not able(), reason="no such operator")), False])
def by_onednn(request, monkeypatch):
    """Whatever processor this is."""
    monkeypatch.setattr(products, "quicker_by_onednn", lambda: request.param)
    taken = []
    real = products._by_onednn
    monkeypatch.setattr(products, "_by_onednn", lambda *args: (taken.append(1), real(*args))[1])
    yield request.param
    assert bool(taken) is request.param


def near(found, exact):
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def test_products_are_those_of_float64(by_onednn):
    torch.manual_seed(0)
    left, right = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)
    exact = left.double() @ right.double()
    near(products.product(left, right), exact)
    turned = left.t().contiguous().t(), right.t().contiguous().t()
    near(products.product(*turned), exact)
    wide = torch.full((ROWS, COLUMNS + 16), torch.nan)
    products.product(left, right, out=wide[:, :COLUMNS])
    near(wide[:, :COLUMNS], exact)
    assert wide[:, COLUMNS:].isnan().all()
    total = torch.ones(ROWS, COLUMNS)
    products.add_product_(total, left, right)
    near(total, exact + 1)


@pytest.mark.parametrize("rows", [16, 64, 200])
def test_a_row_has_the_same_bits_whatever_is_beside_it(by_onednn, rows):
    """Or a cached teacher would not be the live one to the bit."""
    layer, x = nn.Linear(INNER, COLUMNS), torch.randn(ROWS, INNER)
    products.use_quicker_products(layer)
    with torch.no_grad():
        assert torch.equal(layer(x[:rows]), layer(x)[:rows])


@pytest.mark.parametrize("biased", [True, False])
def test_linear_layers_have_the_gradients_of_float64(by_onednn, biased):
    torch.manual_seed(1)
    layer = nn.Linear(INNER, COLUMNS, bias=biased)
    exact = nn.Linear(INNER, COLUMNS, bias=biased).double()
    exact.load_state_dict(layer.state_dict())
    products.use_quicker_products(layer)
    x = torch.randn(3, ROWS // 3, INNER, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    upstream = torch.randn(3, ROWS // 3, COLUMNS)
    found = layer(x).add_(1.0)  # as logits get a bias
    found.backward(upstream)
    expected = exact(wide) + 1
    expected.backward(upstream.double())
    near(found, expected)
    near(x.grad, wide.grad)
    for mine, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
        near(mine.grad, theirs.grad)
    frozen = layer.requires_grad_(False)(x.detach())
    assert not frozen.requires_grad and torch.equal(frozen + 1, found)
    read = x * 1.0
    through, x.grad = layer(read), None
    read.zero_()  # with a frozen weight nothing is asked of it any more
    through.sum().backward()  # its gradient lies nowhere: one number for all
    near(x.grad, wide.new_ones(upstream.shape) @ exact.weight.detach())


def test_a_batch_of_nothing_has_gradients_of_nothing(by_onednn):
    layer, x = nn.Linear(INNER, COLUMNS), torch.empty(2, 0, INNER, requires_grad=True)
    products.use_quicker_products(layer)
    found = layer(x)
    found.sum().backward()
    assert found.shape == (2, 0, COLUMNS) and x.grad.shape == x.shape and not layer.weight.grad.any()


@pytest.mark.parametrize(
    "inner, dtype, enabled", [(128, torch.float32, True), (INNER, torch.bfloat16, True), (INNER, torch.float32, False)]
)
def test_small_ones_and_others_are_left_to_torch(monkeypatch, inner, dtype, enabled):
    monkeypatch.setattr(products, "quicker_by_onednn", lambda: True)
    monkeypatch.setattr(products, "_by_onednn", None)
    layer, x = nn.Linear(inner, COLUMNS).to(dtype), torch.ones(ROWS, inner, dtype=dtype)
    products.use_quicker_products(layer)
    with torch.backends.mkldnn.flags(enabled=enabled):
        assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))
        assert torch.equal(products.product(x, layer.weight.t()), torch.mm(x, layer.weight.t()))


def test_only_plain_linear_layers_change():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Own(2, 2), nn.LayerNorm(2))
    names = list(model.state_dict())
    products.use_quicker_products(model)
    assert [type(module) for module in model] == [products.Linear, Own, nn.LayerNorm]
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    "vendor, capability, expected",
    [("AuthenticAMD", "AVX512", able()), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)],
)
def test_the_processor_decides(monkeypatch, vendor, capability, expected):
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.quicker_by_onednn.__wrapped__() is expected
    monkeypatch.setattr(products, "quicker_by_onednn", products.quicker_by_onednn.__wrapped__)
    assert (products.library() == "oneDNN") is expected
    with torch.backends.mkldnn.flags(enabled=False):
        assert products.library() != "oneDNN"
