"""What each family gives, by ParlAI's conventions: start logit, embeddings, final norms; and the lookup."""

import math

import pytest
import torch

from distill_engine.families.lookup import family_named, family_of
from distill_engine.models.adapter import adapt, masked_logit_value
from distill_engine.values import FeatureRequest, Stack

FILL = {torch.float32: -1e20, torch.bfloat16: -1e20, torch.float16: -65504.0}


@pytest.mark.parametrize("dtype", FILL)
def test_blenderbot_never_predicts_start(tiny, dtype):
    adapter = adapt(tiny.model("blenderbot").to(dtype))
    logits = adapter(tiny.batch("blenderbot"), FeatureRequest()).logits
    assert logits.dtype == dtype and torch.isfinite(logits).all()
    assert (logits[..., tiny.START] == torch.tensor(FILL[dtype], dtype=dtype)).all()
    others = logits[..., [n for n in range(tiny.VOCABULARY) if n != tiny.START]]
    assert (others.abs() < 1e3).all()
    assert logits.float().softmax(-1)[..., tiny.START].max() == 0


@pytest.mark.parametrize("dtype", FILL)
def test_bart_may_predict_start(tiny, dtype):
    logits = adapt(tiny.model("bart").to(dtype))(tiny.batch("bart"), FeatureRequest()).logits
    assert (logits[..., tiny.START].abs() < 1e3).all()


def test_fill_values():
    assert {dtype: masked_logit_value(dtype) for dtype in FILL} == FILL


def test_a_filled_logit_carries_no_gradient(tiny):
    model = tiny.model("blenderbot")
    logits = adapt(model)(tiny.batch("blenderbot"), FeatureRequest()).logits
    logits[..., tiny.START].sum().backward(retain_graph=True)
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())
    logits.sum().backward()
    assert (model.model.decoder.layers[0].fc1.weight.grad != 0).any()


def test_the_logits_bias_counts(family, tiny):
    model, batch = tiny.model(family), tiny.batch(family)
    before = adapt(model)(batch, FeatureRequest()).logits
    model.final_logits_bias[0, 5] = 2.5
    difference = adapt(model)(batch, FeatureRequest()).logits - before
    assert torch.allclose(difference[..., 5], torch.tensor(2.5)) and (difference[..., 6:] == 0).all()


def test_embeddings_are_bare_table_rows(family, tiny):
    model, batch = tiny.model(family), tiny.batch(family)
    scale = model.model.encoder.embed_tokens.embed_scale
    assert scale == (math.sqrt(16) if family == "blenderbot" else 1.0)
    embeddings = adapt(model)(batch, FeatureRequest(embeddings=frozenset(Stack))).embeddings
    table = model.model.shared.weight
    assert torch.equal(embeddings[Stack.ENCODER], table[batch.inputs.input_ids])
    assert torch.equal(embeddings[Stack.DECODER], table[batch.decoder_input_ids])


@pytest.mark.parametrize("order", [(Stack.ENCODER, Stack.DECODER), (Stack.DECODER, Stack.ENCODER)])
def test_embeddings_come_in_one_order_however_they_are_asked_for(tiny, order):
    """Ranks must add up gradients in the same order; a set of names has another order in every process."""
    request = FeatureRequest(embeddings=dict.fromkeys(order).keys())
    assert list(adapt(tiny.model("bart"))(tiny.batch("bart"), request).embeddings) == [Stack.ENCODER, Stack.DECODER]


def test_embeddings_are_unscaled_for_any_width(tiny):
    model, batch = tiny.model("blenderbot", width=18), tiny.batch("blenderbot")  # sqrt(18) is no round number
    embeddings = adapt(model)(batch, FeatureRequest(embeddings=frozenset({Stack.ENCODER}))).embeddings
    assert list(embeddings) == [Stack.ENCODER]
    assert torch.allclose(embeddings[Stack.ENCODER], model.model.shared.weight[batch.inputs.input_ids], rtol=1e-6)


def test_last_hidden_state_of_blenderbot_is_before_the_final_norm(tiny):
    model, batch = tiny.model("blenderbot"), tiny.batch("blenderbot")
    request = FeatureRequest(encoder_output=True, hidden={Stack.ENCODER: (1,), Stack.DECODER: (2,)})
    features = adapt(model)(batch, request)
    hidden = features.hidden[Stack.ENCODER, 1]
    assert torch.equal(model.model.encoder.layer_norm(hidden), features.encoder_output)
    assert not torch.allclose(hidden, features.encoder_output, atol=0.1)
    logits = model.lm_head(model.model.decoder.layer_norm(features.hidden[Stack.DECODER, 2]))
    assert torch.allclose(logits[..., 2:], features.logits[..., 2:], atol=1e-5)


def test_last_hidden_state_of_bart_is_the_encoders_output(tiny):
    request = FeatureRequest(encoder_output=True, hidden={Stack.ENCODER: (1,)})
    features = adapt(tiny.model("bart"))(tiny.batch("bart"), request)
    assert torch.equal(features.hidden[Stack.ENCODER, 1], features.encoder_output)


def test_families_are_found_by_configuration_object_or_mapping(family, tiny):
    assert family_of(tiny.config(family)) is family_named(family)
    assert family_of({"model_type": family}) is family_named(family)


def test_other_families_are_refused():
    with pytest.raises(ValueError, match=r"model type .gpt2. is none of the families\. There are: .*t5.*whisper\."):
        family_of({"model_type": "gpt2"})


def test_parameter_names_in_the_table_exist(family, tiny):
    table, model = family_named(family), tiny.model(family)
    names = dict(model.named_parameters())
    for stack, depth in ((Stack.ENCODER, 2), (Stack.DECODER, 3)):
        assert names[table.position_table(stack)].shape[0] == 24 + table.form.position_rows
        assert any(name.startswith(table.layer_prefix(stack, depth - 1)) for name in names)
        assert not any(name.startswith(table.layer_prefix(stack, depth)) for name in names)
    for prefix in table.final_norms:
        assert prefix + "weight" in names
