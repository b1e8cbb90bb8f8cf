"""Features as rows of tables, and back."""

from dataclasses import replace

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from distill_engine.arithmetic.products import use_quicker_products
from distill_engine.models.adapter import adapt
from distill_engine.teachers.columns import CacheError, Form, attention_facts, constants, names_of, packed, unpacked
from distill_engine.values import AttentionKind, Batch, FeatureRequest, Stack, Tokens

ALL = FeatureRequest(
    logits=True,
    encoder_output=True,
    embeddings=frozenset(Stack),
    hidden={Stack.ENCODER: (1,), Stack.DECODER: (0, 2)},
    attention={AttentionKind.ENCODER_SELF: (1,), AttentionKind.DECODER_SELF: (0, 2), AttentionKind.CROSS: (2,)},
)


@pytest.fixture
def shown(tiny, family):
    with torch.no_grad():
        return adapt(tiny.model(family))(tiny.batch(family), ALL)


def restored(shown, form, request=ALL):
    tables = {name: rows for name, (_, _, rows) in packed(shown, form).items()}
    assert sorted(tables) == sorted(names_of(ALL, form))
    rows = {name: tables[name] for name in names_of(request, form)}
    return unpacked(rows, form, attention_facts(shown), request, constants(shown))


def test_everything_comes_back_to_the_bit(shown, tiny, family):
    back = restored(shown, Form(None, "fp32", tiny.VOCABULARY, tiny.START))
    assert torch.equal(back.logits, shown.logits) and torch.equal(back.encoder_output, shown.encoder_output)
    for kind in ("embeddings", "hidden"):
        ours, theirs = getattr(back, kind), getattr(shown, kind)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert back.attention.keys() == shown.attention.keys()
    for key, pair in shown.attention.items():
        other = back.attention[key]
        assert torch.equal(other.query, pair.query) and torch.equal(other.key, pair.key) and other.scale == pair.scale
    nothing = restored(shown, Form(None, "fp32", tiny.VOCABULARY, None), FeatureRequest(logits=False))
    assert nothing.logits is None and nothing.encoder_output is None and not nothing.hidden


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("bf16", 5e-3)])
def test_the_most_probable_tokens_keep_their_probability_and_the_others_share_the_rest(shown, tiny, dtype, tolerance):
    masked = 1 if bool((shown.logits[..., 1] < -1e19).all()) else None
    back = restored(shown, Form(5, dtype, tiny.VOCABULARY, masked))
    assert back.kept.shape[-1] == 5 + (masked is not None)
    rebuilt, true = back.logits.softmax(dim=-1), shown.logits.softmax(dim=-1)
    values, ids = true.topk(5, dim=-1)
    torch.testing.assert_close(rebuilt.gather(-1, ids), values, rtol=tolerance, atol=1e-7)
    torch.testing.assert_close(rebuilt.gather(-1, back.kept[..., :5]), values, rtol=tolerance, atol=1e-7)
    rest = rebuilt.scatter(-1, ids, 0.0)
    torch.testing.assert_close(rest.sum(dim=-1), 1 - values.sum(dim=-1), rtol=tolerance, atol=tolerance)
    if masked is not None:
        assert not rebuilt[..., masked].any()
    assert ((rest > 0).sum(dim=-1) == tiny.VOCABULARY - 5 - (masked is not None)).all()
    even = rest.sum(dim=-1, keepdim=True) / (tiny.VOCABULARY - 5 - (masked is not None))
    torch.testing.assert_close(rest.amax(dim=-1, keepdim=True), even, rtol=1e-5, atol=1e-9)


def test_logits_come_back_from_their_factors_to_the_bit(tiny, family):
    batch = tiny.batch(family)
    asked = FeatureRequest(logits=True, head=True)
    with torch.no_grad():
        shown = adapt(tiny.model(family))(batch, asked)
    form = Form(None, "fp32", tiny.VOCABULARY, shown.head.masked_id, head=True)
    (row,) = packed(shown, form).items()
    assert row[0] == "head" and row[1][2].shape[-1] == shown.head.embedding.shape[1]
    back = unpacked({"head": row[1][2]}, form, {}, asked, constants(shown))
    assert torch.equal(back.logits, shown.logits) and torch.equal(back.head.hidden, shown.head.hidden)
    assert back.head.masked_id == shown.head.masked_id


def test_factors_are_multiplied_by_the_library_that_the_models_layer_takes():
    """Sizes of real models: below them both libraries are one."""
    model = torch.nn.Sequential(torch.nn.Linear(512, 2048, bias=False))
    use_quicker_products(model)
    draw = torch.Generator().manual_seed(8)
    hidden = torch.randn(4, 32, 512, generator=draw)
    with torch.no_grad():
        logits = model(hidden)
        once = {"head.embedding": model[0].weight.detach()}
        back = unpacked({"head": hidden}, Form(None, "fp32", 2048, None, head=True), {}, FeatureRequest(), once)
    assert torch.equal(back.logits, logits)


def test_position_biases_are_one_number_for_each_head_and_distance():
    config = T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4,
                      relative_attention_num_buckets=6, relative_attention_max_distance=9,
                      decoder_start_token_id=0)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = adapt(T5ForConditionalGeneration(config).eval())
    kinds = {AttentionKind.ENCODER_SELF: (1,), AttentionKind.DECODER_SELF: (0, 1), AttentionKind.CROSS: (1,)}
    asked = FeatureRequest(logits=False, attention=kinds)

    def of(context: int, label: int):
        ids = torch.arange(context)[None] % 30 + 2
        labels = torch.arange(label)[None] % 30 + 2
        with torch.no_grad():
            return model(Batch.of(Tokens(ids, torch.ones_like(ids)), labels, labels), asked)

    once, shown = constants(of(24, 20)), of(13, 7)
    assert {name: tuple(table.shape) for name, table in once.items()} == {
        "bias.encoder_self.1": (4, 47), "bias.decoder_self.0": (4, 39), "bias.decoder_self.1": (4, 39),
    }  # fmt: skip
    form = Form(None, "fp32", 32, None)
    rows = {name: row for name, (_, _, row) in packed(shown, form).items()}
    back = unpacked(rows, form, attention_facts(shown), asked, once)
    for key, pair in shown.attention.items():
        other = back.attention[key]
        assert torch.equal(other.query, pair.query) and torch.equal(other.key, pair.key)
        assert (pair.bias is None) == (key[0] is AttentionKind.CROSS) == (other.bias is None)
        assert pair.bias is None or torch.equal(other.bias, pair.bias)
    (key, pair), *_ = shown.attention.items()
    other = replace(pair, bias=torch.rand(4, 13, 13))
    with pytest.raises(CacheError, match=r"not those of distances.*Set the weights of its attention terms to 0"):
        constants(replace(shown, attention={key: other}))
