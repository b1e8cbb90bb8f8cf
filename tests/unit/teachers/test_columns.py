"""Features as rows of tables, and back."""

from dataclasses import replace

import pytest
import torch

from distill_engine.models.adapter import adapt
from distill_engine.teachers.columns import CacheError, Form, attention_facts, names_of, packed, unpacked
from distill_engine.values import AttentionKind, FeatureRequest, QueryKey, Stack

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
    return unpacked({name: tables[name] for name in names_of(request, form)}, form, attention_facts(shown), request)


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
    rebuilt, true = back.logits.softmax(dim=-1), shown.logits.softmax(dim=-1)
    values, ids = true.topk(5, dim=-1)
    torch.testing.assert_close(rebuilt.gather(-1, ids), values, rtol=tolerance, atol=1e-7)
    rest = rebuilt.scatter(-1, ids, 0.0)
    torch.testing.assert_close(rest.sum(dim=-1), 1 - values.sum(dim=-1), rtol=tolerance, atol=tolerance)
    if masked is not None:
        assert not rebuilt[..., masked].any()
    assert ((rest > 0).sum(dim=-1) == tiny.VOCABULARY - 5 - (masked is not None)).all()
    even = rest.sum(dim=-1, keepdim=True) / (tiny.VOCABULARY - 5 - (masked is not None))
    torch.testing.assert_close(rest.amax(dim=-1, keepdim=True), even, rtol=1e-5, atol=1e-9)


def test_position_biases_are_refused_with_what_to_do(shown, tiny):
    (key, pair), *_ = shown.attention.items()
    biased = QueryKey(pair.query, pair.key, pair.scale, torch.zeros(2, 5, 5))
    with pytest.raises(CacheError, match=r"position biases.*Set the weights of its attention terms to 0"):
        packed(replace(shown, attention={key: biased}), Form(None, "fp32", tiny.VOCABULARY, None))
