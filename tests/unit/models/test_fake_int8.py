"""Imitated int8: its numbers are those of real int8, its gradient is straight, and off it is the plain model."""

import copy

import pytest
import torch
from torch import nn

from distill_engine.arithmetic.products import use_quicker_products
from distill_engine.export.backends import int8_twin
from distill_engine.export.hf import host_model
from distill_engine.export.protocol import TargetError
from distill_engine.families.lookup import family_of
from distill_engine.models.adapter import adapt
from distill_engine.models.fake_int8 import LEVELS, FakeInt8Linear, Switch, fake_int8, with_fake_int8
from distill_engine.values import FeatureRequest, Stack

FORMS = [torch.float32, torch.bfloat16, torch.float16]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", FORMS)
def test_rows_have_whole_steps_of_their_own(dtype):
    """Rounded once is rounded for good, by half a step at most; zeros stay zeros, and bad rows are seen to be bad."""
    rows = (numbers(5, 33) * torch.tensor([1e-6, 1.0, 1e4, 0.0, 1.0])[:, None]).to(dtype)
    rows[4, 7] = torch.inf
    rounded = fake_int8(rows)
    assert rounded.dtype == dtype and rounded[4].isnan().any() and not rounded[3].any()
    exact, found = rows[:3].double(), rounded[:3].double()
    step = exact.abs().amax(1, keepdim=True) / LEVELS
    own = torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((found - exact).abs() <= step / 2 + own).all()
    levels = (found / step).round()
    assert levels.abs().max() == LEVELS and ((found - levels * step).abs() <= own).all()
    assert torch.equal(fake_int8(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_the_gradient_passes_as_if_nothing_had_been_rounded():
    """That of a linear layer at the rounded numbers, unchanged through the rounding to weight and input."""
    plain, x, out = nn.Linear(12, 7), numbers(2, 3, 12).requires_grad_(), numbers(2, 3, 7, seed=1)
    layer = FakeInt8Linear(plain, Switch(on=True)).train()
    assert layer.weight is plain.weight and list(layer.state_dict()) == ["weight", "bias"]
    (layer(x) * out).sum().backward()
    rounded_x, rounded_w = fake_int8(x.detach()), fake_int8(plain.weight.detach())
    torch.testing.assert_close(x.grad, out @ rounded_w)
    torch.testing.assert_close(plain.weight.grad, torch.einsum("blo,bli->oi", out, rounded_x))
    torch.testing.assert_close(plain.bias.grad, out.sum((0, 1)))


def test_one_token_is_what_pytorchs_int8_makes_of_it_within_rounding():
    """Real int8 kernels: weights of a scale per channel, inputs in 7 bits there, so half a step of each is between."""
    torch.manual_seed(0)
    plain = nn.Linear(64, 48)
    real, layer = int8_twin(nn.Sequential(plain)), FakeInt8Linear(plain, Switch(on=True)).eval()
    held = real[0].weight().dequantize()
    with torch.no_grad():
        step = plain.weight.abs().amax(1, keepdim=True) / LEVELS
        assert (fake_int8(plain.weight) - held).abs().le(step).all(), "another scheme of weights"
        for seed in range(20):
            x = numbers(1, 64, seed=seed)
            size = float(x.abs().max()) / LEVELS / 2 + float(x.max() - x.min()) / 127 / 2
            allowed = size * held.abs().sum(1) + (step / 2 * x.abs()).sum(1) + 1e-5
            difference = (layer(x) - real(x)).abs()[0]
            assert (difference <= allowed).all()
            assert difference.norm() < 0.05 * plain(x).norm()
            # and the products themselves are exact: int8 multiplies whole numbers, as the rounded ones are
            by_hand = (x * LEVELS / x.abs().max()).round() * x.abs().max() / LEVELS
            torch.testing.assert_close(layer(x), by_hand @ fake_int8(plain.weight).T + plain.bias)


@pytest.mark.parametrize("family", ["blenderbot", "bart"])
def test_a_model_is_the_plain_one_to_the_bit_until_its_switch_is_on(tiny, family):
    """Whole logits and the factors of fused kernels agree, rounded or not; what is exported knows nothing of it."""
    plain = tiny.model(family).eval()
    model = copy.deepcopy(plain)
    switch = with_fake_int8(model, [part.embedding for part in family_of(model.config).parts(model).stacks.values()])
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.lm_head.weight is model.get_input_embeddings().weight, "a tied table is one table"
    batch = tiny.batch(family)
    asked = FeatureRequest(logits=True, head=True, embeddings=frozenset({Stack.DECODER}))
    reference, adapter = adapt(plain), adapt(model).eval()
    with torch.no_grad():
        want, off = reference(batch, asked), adapter(batch, asked)
        assert torch.equal(off.logits, want.logits)
        switch.on = True
        on = adapter(batch, asked)
        again = adapter(batch, asked)
    assert torch.equal(on.logits, again.logits) and not torch.equal(on.logits, want.logits)
    formed = on.head.hidden @ on.head.embedding.T
    formed = formed if on.head.bias is None else formed + on.head.bias
    if on.head.masked_id is not None:
        formed[..., on.head.masked_id] = on.logits[..., on.head.masked_id]
    torch.testing.assert_close(on.logits, formed)
    table = fake_int8(plain.get_input_embeddings().weight)[batch.decoder_input_ids]
    torch.testing.assert_close(on.embeddings[Stack.DECODER], table)
    with torch.no_grad():
        exported = host_model(model)
        assert type(exported.lm_head) is nn.Linear
        real = adapt(int8_twin(exported))(batch, FeatureRequest(logits=True)).logits
    kept = torch.ones(on.logits.shape[-1], dtype=torch.bool)
    if on.head.masked_id is not None:
        kept[on.head.masked_id] = False
    rounding = (real - want.logits)[..., kept].norm()
    assert 0 < (on.logits - want.logits)[..., kept].norm() < 2 * rounding, "far more than int8 does"


def test_weights_that_have_changed_are_rounded_anew():
    """They are kept while a student generates, and never longer."""
    layer, x = FakeInt8Linear(nn.Linear(8, 4), Switch(on=True)).eval(), numbers(1, 8)
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(layer(x), first)
        layer.weight.mul_(2)
        layer.train().eval()
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (first - layer.bias))


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match=r"Sequential has no layers of torch\.nn\.Linear"):
        with_fake_int8(nn.Sequential(nn.Embedding(3, 2)), [])
    adapted = nn.Sequential(nn.Linear(3, 2))
    use_quicker_products(adapted)
    with pytest.raises(TargetError, match=r"Sequential has no layers of torch\.nn\.Linear"):
        int8_twin(adapted)  # PyTorch would leave them as they are, and say nothing
