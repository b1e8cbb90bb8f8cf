"""An encoder that is frozen, and run once for two models."""

import pytest
import tiny_families
import torch

from distill_engine.models.adapter import adapt
from distill_engine.teachers.live import joined
from distill_engine.values import AttentionKind, Encoded, FeatureRequest, Stack

ALL = FeatureRequest(hidden={Stack.DECODER: (0, 2)}, attention={AttentionKind.CROSS: (1,)})


@pytest.mark.parametrize("name", ["bart-large-cnn", "t5-small", "whisper-large-v3"])
def test_what_is_encoded_once_gives_the_same_features(name):
    model, batch = tiny_families.model(name, dropout=0.5), tiny_families.batch(name)
    adapter = adapt(model)
    adapter.freeze_encoder()
    with torch.no_grad():
        plain = adapter(batch, ALL)
    assert adapter.train().model.get_encoder().training is False  # nothing is dropped in it
    assert adapter.model.training
    encoded = adapter.encoded(batch)
    assert isinstance(encoded.inputs, Encoded) and not encoded.inputs.states.requires_grad
    assert torch.equal(encoded.context_mask, batch.context_mask)
    with torch.no_grad():
        again = adapter.eval()(encoded, ALL)
        both = adapter(joined([encoded, adapter.encoded(tiny_families.batch(name, contexts=(2,), labels=(3,)))]), ALL)
    torch.testing.assert_close(again.logits, plain.logits)
    torch.testing.assert_close(again.hidden[Stack.DECODER, 2], plain.hidden[Stack.DECODER, 2])
    torch.testing.assert_close(again.attention[AttentionKind.CROSS, 1].key, plain.attention[AttentionKind.CROSS, 1].key)
    rows, labels = plain.logits.shape[:2]
    torch.testing.assert_close(both.logits[:rows, :labels], plain.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bart-large-cnn", "whisper-large-v3"])
def test_nothing_that_it_reads_is_trained(name):
    model, batch = tiny_families.model(name), tiny_families.batch(name)
    adapter = adapt(model)
    adapter.freeze_encoder()
    adapter(batch, FeatureRequest()).logits.sum().backward()
    moved = {key for key, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert moved and all(key.startswith("model.decoder.") for key in moved)
    assert any("encoder_attn.k_proj" in key for key in moved)
    tied = model.get_input_embeddings().weight
    assert tied.requires_grad == (name == "whisper-large-v3")  # BART's encoder reads the table, too
