"""fp16 overflows of a real T5, on the CPU's own half precision: told by the layer where they begin."""

import pytest
import tiny_families
import torch

from distill_engine.engine.overflow import first_overflow, searched
from distill_engine.models.adapter import adapt
from distill_engine.values import FeatureRequest

BATCH = tiny_families.batch("flan-t5-small")


def looked_at(dtype, spoil=None):
    model = tiny_families.model("flan-t5-small")
    if spoil is not None:
        with torch.no_grad():
            spoil(model)
    adapter = adapt(model.to(dtype))
    with torch.no_grad():
        features = adapter(BATCH, adapter.every_layer)
    return first_overflow(features, BATCH), features


def wide(stack, layer, by=1e5):
    def spoil(model):
        getattr(model, stack).block[layer].layer[-1].DenseReluDense.wo.weight.mul_(by)

    return spoil


def infinite_product(model):
    """The gate's product overflows inside the feed-forward part, before transformers' cut can see it."""
    inner = model.decoder.block[2].layer[-1].DenseReluDense
    inner.wi_0.weight.mul_(3e3)
    inner.wi_1.weight.mul_(3e3)


def test_numbers_that_fit_are_not_told_of():
    where, features = looked_at(torch.float16)
    assert where == "" and features.logits.dtype == torch.float16
    assert looked_at(torch.bfloat16, wide("encoder", 1))[0] == ""  # the advice helps


@pytest.mark.parametrize(("stack", "layer", "by"), [("encoder", 1, 3e4), ("decoder", 0, 1e5)])
def test_a_layer_that_transformers_cuts_is_named_though_all_stays_finite(stack, layer, by):
    where, features = looked_at(torch.float16, wide(stack, layer, by))
    assert f"{stack} layer {layer} of 3 (from 0) is the first" in where and "cuts it to 645" in where
    assert torch.isfinite(features.logits).all()


def test_a_layer_that_becomes_nan_is_named():
    where, features = looked_at(torch.float16, infinite_product)
    assert where.startswith("decoder layer 2 of 3") and "not finite" in where
    assert not torch.isfinite(features.logits).all()


def test_padding_does_not_count():
    _, features = looked_at(torch.float16)
    hidden = dict(features.hidden)
    (stack, layer), states = next(iter(hidden.items()))
    hidden[stack, layer] = states.masked_fill(~BATCH.mask_of(stack)[..., None], float("inf"))
    assert first_overflow(type(features)(hidden=hidden), BATCH) == ""


def test_the_search_asks_for_every_layer():
    request = adapt(tiny_families.model("flan-t5-small")).every_layer
    assert isinstance(request, FeatureRequest) and {len(layers) for layers in request.hidden.values()} == {3}


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_where_an_encoder_has_run_already_the_search_begins_behind_it(stack):
    """As a student that shares its teacher's encoder is searched."""
    model = tiny_families.model("flan-t5-small")
    with torch.no_grad():
        getattr(model, stack).final_layer_norm.weight[0] = float("inf")
    adapter = adapt(model)
    batch = adapter.encoded(BATCH)
    found = searched(adapter.train(), batch)
    assert found.startswith("the encoder, behind all its layers, is" if stack == "encoder" else "the output over the")
    assert searched(adapter, BATCH) == found and adapter.training
    whole = adapt(tiny_families.model("flan-t5-small"))
    assert searched(whole, whole.encoded(BATCH)) == ""
