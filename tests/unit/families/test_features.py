"""What each family gives, on tiny models with the published configurations' oddities: equal to plain transformers'."""

import copy

import pytest
import tiny_families
import torch
from torch.nn.functional import gelu

from distill_engine.families.lookup import start_of
from distill_engine.models.adapter import adapt
from distill_engine.values import AttentionKind, FeatureRequest, Stack, Tokens

NAMES = list(tiny_families.PUBLISHED)
ALL = FeatureRequest(
    logits=True,
    head=True,
    encoder_output=True,
    embeddings=frozenset(Stack),
    hidden=dict.fromkeys(Stack, (0, 1, 2)),
    attention=dict.fromkeys(AttentionKind, (0, 2)),
)


def eager(model, batch):
    """Plain transformers' outputs, and the scores before the softmax of every attention, by its own eager code."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        return plain(
            **batch.inputs.keywords, decoder_input_ids=batch.decoder_input_ids, use_cache=False,
            output_hidden_states=True, output_attentions=True,
        )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_plain_transformers(name):
    model, batch = tiny_families.model(name), tiny_families.batch(name)
    expected = eager(model, batch)
    adapter = adapt(model)
    with torch.no_grad():
        features = adapter(batch, ALL)
    masked = adapter.family.masked_id(start_of(model.config))
    seen = [n for n in range(tiny_families.VOCABULARY) if n != masked]
    rows = batch.label_mask
    torch.testing.assert_close(features.logits[rows][:, seen], expected.logits[rows][:, seen], rtol=1e-4, atol=1e-4)
    context = batch.context_mask
    torch.testing.assert_close(
        features.encoder_output[context], expected.encoder_last_hidden_state[context], rtol=1e-4, atol=1e-4
    )
    head = features.head
    product = head.hidden @ head.embedding.T + (0.0 if head.bias is None else head.bias)
    torch.testing.assert_close(product[rows][:, seen], features.logits[rows][:, seen], rtol=1e-4, atol=1e-4)
    assert head.masked_id == masked
    # the last hidden state is behind the last norm there, so all but the last layer
    stacks = {Stack.ENCODER: expected.encoder_hidden_states, Stack.DECODER: expected.decoder_hidden_states}
    for stack, states in stacks.items():
        counted = batch.mask_of(stack)
        for layer in (0, 1):
            found = features.hidden[stack, layer][counted]
            torch.testing.assert_close(found, states[layer + 1][counted], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_scores_give_eager_attentions_weights(name):
    """Softmax of what is captured, masked, is what eager attention computes: scale and position bias are right."""
    model, batch = tiny_families.model(name), tiny_families.batch(name)
    expected = eager(model, batch)
    with torch.no_grad():
        features = adapt(model)(batch, ALL).attention
    weights = {
        AttentionKind.ENCODER_SELF: expected.encoder_attentions,
        AttentionKind.DECODER_SELF: expected.decoder_attentions,
        AttentionKind.CROSS: expected.cross_attentions,
    }
    for (kind, layer), one in features.items():
        scores = one.query @ one.key.transpose(2, 3) * one.scale
        if one.bias is not None:
            scores = scores + one.bias
        if kind is AttentionKind.DECODER_SELF:
            scores = scores.masked_fill(~torch.ones_like(scores[0, 0], dtype=torch.bool).tril(), -1e9)
        else:
            scores = scores.masked_fill(~batch.context_mask[:, None, None, :], -1e9)
        counted = batch.mask_of(kind.query_stack)
        found = scores.softmax(-1).transpose(1, 2)[counted]
        torch.testing.assert_close(found, weights[kind][layer].transpose(1, 2)[counted], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_bare_table_rows(name):
    model, batch = tiny_families.model(name), tiny_families.batch(name)
    with torch.no_grad():
        features = adapt(model)(batch, ALL).embeddings
    body = getattr(model, "model", model)
    expected = {Stack.DECODER: body.decoder.embed_tokens.weight[batch.decoder_input_ids]}
    if isinstance(batch.inputs, Tokens):
        expected[Stack.ENCODER] = body.encoder.embed_tokens.weight[batch.inputs.input_ids]
    else:  # what the convolutions make of the sound
        first = gelu(body.encoder.conv1(batch.inputs.input_features))
        expected[Stack.ENCODER] = gelu(body.encoder.conv2(first)).transpose(1, 2)
    for stack, values in expected.items():
        torch.testing.assert_close(features[stack], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["t5-small", "umt5-small"])
def test_gradients_reach_the_bias_tables(name):
    model, batch = tiny_families.model(name), tiny_families.batch(name)
    features = adapt(model)(batch, FeatureRequest(logits=False, attention={AttentionKind.ENCODER_SELF: (2,)}))
    features.attention[AttentionKind.ENCODER_SELF, 2].bias.square().sum().backward()
    layer = 0 if name == "t5-small" else 2
    table = model.encoder.block[layer].layer[0].SelfAttention.relative_attention_bias.weight
    assert table.grad is not None and (table.grad != 0).any()
