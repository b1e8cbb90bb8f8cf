"""Recording inside a forward pass: right tensors, nothing else, nothing kept, and the same under checkpointing."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from hot_path_waits import HostWaits

from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.models import capture
from distill_engine.models.adapter import adapt
from distill_engine.models.capture import CaptureError, Recorder
from distill_engine.student.projections import StudentModule, feature_tensors
from distill_engine.values import AttentionKind, FeatureRequest, Stack, Tokens

EVERYTHING = FeatureRequest(
    encoder_output=True,
    embeddings=frozenset(Stack),
    hidden={Stack.ENCODER: (0, 1), Stack.DECODER: (0, 1, 2)},
    attention={
        AttentionKind.ENCODER_SELF: (0, 1), AttentionKind.DECODER_SELF: (0, 2), AttentionKind.CROSS: (1,),
    },
)  # fmt: skip


def copy_with(model, implementation: str):
    """The same weights with another attention implementation."""
    config = type(model.config).from_dict(model.config.to_dict())
    config._attn_implementation = implementation
    other = type(model)(config)
    other.load_state_dict(model.state_dict())
    return other.eval()


# ---- the recorder alone -------------------------------------------------------------------------------------------


def test_first_write_wins_and_only_wanted_sites_are_kept():
    recorder = Recorder()
    recorder.write(("hidden", Stack.ENCODER, 0), "before")
    with recorder.recording(frozenset({("hidden", Stack.ENCODER, 0)})) as seen:
        recorder.write(("hidden", Stack.ENCODER, 0), "first")
        recorder.write(("hidden", Stack.ENCODER, 0), "second")
        recorder.write(("hidden", Stack.ENCODER, 1), "unwanted")
    recorder.write(("hidden", Stack.ENCODER, 0), "after")
    assert seen == {("hidden", Stack.ENCODER, 0): "first"}


def test_an_empty_site_is_an_error_that_names_it():
    recorder = Recorder()
    wanted = frozenset({("hidden", "decoder", 4), ("attention", "cross", 0)})
    message = r"1 of 2 requested features .*hidden.*decoder.*4.*layer drop to 0"
    with pytest.raises(CaptureError, match=message), recorder.recording(wanted):
        recorder.write(("attention", "cross", 0), "there")
    assert not recorder.wants(("hidden", "decoder", 4))


def test_an_error_inside_is_not_hidden_by_missing_sites():
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError), recorder.recording(frozenset({("hidden", "decoder", 0)})):
        raise ZeroDivisionError
    assert not recorder.wants(("hidden", "decoder", 0))


# ---- in real models -----------------------------------------------------------------------------------------------


def test_only_what_is_requested_is_recorded(family, tiny, monkeypatch):
    made = []
    real = capture.QueryKey
    monkeypatch.setattr(capture, "QueryKey", lambda *parts: made.append(parts) or real(*parts))
    adapter = adapt(tiny.model(family))
    features = adapter(tiny.batch(family), FeatureRequest())
    assert made == [] and features.logits is not None and features.encoder_output is None
    assert not (features.embeddings or features.hidden or features.attention)
    one = FeatureRequest(logits=False, attention={AttentionKind.DECODER_SELF: (2,)})
    features = adapter(tiny.batch(family), one)
    assert len(made) == 1 and list(features.attention) == [(AttentionKind.DECODER_SELF, 2)]
    assert features.logits is None and not features.hidden


def test_recording_changes_no_bit_of_the_output(family, tiny):
    model, batch = tiny.model(family), tiny.batch(family, pad_to=(8, 9))
    plain = copy_with(model, "sdpa")
    with torch.no_grad():
        expected = plain.model(**batch.inputs.keywords, decoder_input_ids=batch.decoder_input_ids, use_cache=False)
        adapter = adapt(model)
        request = FeatureRequest(encoder_output=True)
        quiet, recorded = adapter(batch, request), adapter(batch, EVERYTHING)
    assert model.config._attn_implementation == capture.ATTENTION_NAME
    for features in (quiet, recorded):
        assert torch.equal(features.encoder_output, expected.encoder_last_hidden_state)
        logits = plain.lm_head(expected.last_hidden_state) + plain.final_logits_bias
        assert torch.equal(features.logits[..., 2:], logits[..., 2:])


@pytest.mark.parametrize("pad_to", [None, (8, 9)])
def test_no_pass_waits_for_the_device_and_the_logits_are_transformers_own(family, tiny, pad_to):
    """Of a batch with padding and of one without, where transformers leaves its masks out after looking at them."""
    model = tiny.model(family)
    batch = tiny.batch(family, pad_to=(8, 9))
    if pad_to is None:
        batch = replace(batch, inputs=Tokens(ids := batch.inputs.input_ids, torch.ones_like(ids)))
    plain, adapter = copy_with(model, "sdpa"), adapt(model)
    waits = {}
    with torch.no_grad():
        for name, forward in (
            (
                "theirs",
                lambda: plain(
                    **batch.inputs.keywords,
                    decoder_input_ids=batch.decoder_input_ids,
                    use_cache=False,
                ),
            ),
            ("ours", lambda: adapter(batch, EVERYTHING)),
        ):
            with HostWaits() as counted:
                logits = forward().logits
            waits[name] = (counted.total, logits)
    assert waits["ours"][0] == 0 < waits["theirs"][0]
    found, expected = waits["ours"][1], waits["theirs"][1]
    assert torch.equal(found[..., 2:], expected[..., 2:])


@pytest.mark.parametrize("biased", [False, True])
def test_half_precision_attention_with_gradients_is_that_of_32_bits_on_a_cpu(biased):
    """Where its backward pass is slow; without gradients PyTorch's own stays."""
    drawn = torch.Generator().manual_seed(3)
    exact = [torch.randn(2, 3, 5, 4, generator=drawn) for _ in range(3)]
    halves = [one.bfloat16().requires_grad_() for one in exact]
    wide = [one.detach().float().requires_grad_() for one in halves]
    mask = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5)
    bias = torch.randn(1, 3, 5, 5, generator=drawn).bfloat16()
    more = {"position_bias": bias} if biased else {}
    found, _ = capture._capturing_attention(torch.nn.Module(), *halves, mask, dropout=0.0, **more)
    seen = mask.float().log() + (bias.float() if biased else 0.0)
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=seen).transpose(1, 2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), rtol=2**-8, atol=1e-6)
    found.sum().backward()
    expected.sum().backward()
    for half, one in zip(halves, wide, strict=True):
        assert half.grad.dtype == torch.bfloat16
        torch.testing.assert_close(half.grad, one.grad.bfloat16(), rtol=2**-7, atol=1e-5)


def test_captured_query_and_key_are_the_models_own(family, tiny):
    """softmax(scale q k^T + mask) equals the attention weights that the eager implementation returns."""
    model, batch = tiny.model(family, heads=4), tiny.batch(family)
    eager = copy_with(model, "eager")
    with torch.no_grad():
        features = adapt(model)(batch, EVERYTHING)
        outputs = eager(
            **batch.inputs.keywords,
            decoder_input_ids=batch.decoder_input_ids, use_cache=False, output_attentions=True,
        )  # fmt: skip
    weights = {
        AttentionKind.ENCODER_SELF: outputs.encoder_attentions,
        AttentionKind.DECODER_SELF: outputs.decoder_attentions,
        AttentionKind.CROSS: outputs.cross_attentions,
    }
    compared = 0
    for (kind, layer), pair in features.attention.items():
        assert pair.scale == pytest.approx(4**-0.5)
        scores = pair.scale * pair.query @ pair.key.transpose(-1, -2)
        if kind is AttentionKind.DECODER_SELF:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        else:
            hidden = ~batch.context_mask[:, None, None]
        actual = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        assert torch.allclose(actual, weights[kind][layer], atol=1e-6), (kind, layer)
        compared += 1
    assert compared == 5


def test_hidden_states_are_those_of_whole_layers(family, tiny):
    model, batch = tiny.model(family), tiny.batch(family)
    outputs = {}

    def keep(name):
        return lambda _module, _args, output: outputs.update({name: output})

    for stack in Stack:
        for n, layer in enumerate(getattr(model.model, stack.value).layers):
            layer.register_forward_hook(keep((stack, n)))
    features = adapt(model)(batch, EVERYTHING)
    assert len(features.hidden) == 5
    for site, value in features.hidden.items():
        output = outputs[site]
        assert torch.equal(value, output[0] if isinstance(output, tuple) else output)


def test_a_second_pass_shows_its_own_values(family, tiny):
    adapter = adapt(tiny.model(family))
    first, second = (tiny.batch(family, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        expected = [feature_tensors(adapt(tiny.model(family))(batch, EVERYTHING)) for batch in (first, second)]
        for _ in range(2):
            for batch, wanted in zip((first, second), expected, strict=True):
                actual = feature_tensors(adapter(batch, EVERYTHING))
                assert all(torch.equal(one, other) for one, other in zip(actual, wanted, strict=True))


@pytest.mark.parametrize("gradients", [False, True])
def test_features_die_with_their_last_reference(family, tiny, gradients):
    adapter = adapt(tiny.model(family))
    with torch.set_grad_enabled(gradients):
        features = adapter(tiny.batch(family), EVERYTHING)
    references = [weakref.ref(tensor) for tensor in feature_tensors(features)]
    assert len(references) > 15
    del features
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)


def test_features_die_when_the_forward_pass_fails(tiny):
    model = tiny.model("bart")
    adapter = adapt(model)
    seen = []
    model.model.encoder.layers[0].register_forward_hook(lambda _m, _a, output: seen.append(weakref.ref(output)))

    def fail(*_args):
        raise MemoryError("no room")

    handle = model.model.decoder.layers[1].register_forward_hook(fail)
    with pytest.raises(MemoryError), torch.no_grad():
        adapter(tiny.batch("bart"), EVERYTHING)
    gc.collect()
    assert [reference() for reference in seen] == [None]
    handle.remove()
    assert len(feature_tensors(adapter(tiny.batch("bart"), EVERYTHING))) > 15


def test_a_layer_that_is_not_there_is_an_error(family, tiny):
    adapter = adapt(tiny.model(family))
    with pytest.raises(CaptureError, match=r"1 of 1 requested features were not produced: .*DECODER.*, 7\)"):
        adapter(tiny.batch(family), FeatureRequest(hidden={Stack.DECODER: (7,)}))


def test_a_dropped_layer_is_an_error(family, tiny):
    adapter = adapt(tiny.model(family, decoder_layerdrop=1.0)).train()
    with pytest.raises(CaptureError, match="layer drop"):
        adapter(tiny.batch(family), EVERYTHING)


def test_generation_works_on_an_adapted_model_and_says_the_same(family, tiny):
    model, batch = tiny.model(family), tiny.batch(family)
    plain = copy_with(model, "sdpa")
    adapter = adapt(model)
    adapter(batch, EVERYTHING)
    replies = [one.generate(**batch.inputs.keywords, num_beams=2, max_new_tokens=6) for one in (plain, model)]
    assert torch.equal(*replies) and replies[0].shape[1] > 2


# ---- activation checkpointing --------------------------------------------------------------------------------------


def losses_and_gradients(tiny, family, dropout: float, checkpointing: dict | None):
    model = tiny.model(family, dropout=dropout, attention_dropout=dropout, activation_dropout=dropout)
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    student, teacher = StudentModule(adapt(model), None).train(), adapt(tiny.model(family, seed=1))
    everything = LossWeights(**dict.fromkeys(LossWeights.fields(), 1))
    objective = Objective(everything, {Stack.ENCODER: (0, 1), Stack.DECODER: (0, 1, 2)})
    batch = tiny.batch(family)
    torch.manual_seed(5)  # dropout
    with torch.no_grad():
        teacher_features = teacher(batch, objective.teacher_request())
    student_features, _ = student(batch, objective.student_request())
    terms = objective.terms(student_features, teacher_features, batch)
    divisors = objective.divisors([batch], lambda counts: counts, 1)
    objective.total(terms, divisors[0]).backward()
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return {term: value.sum.item() for term, value in terms.items()}, gradients


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_neither_losses_nor_gradients(family, tiny, dropout):
    plain, gradients = losses_and_gradients(tiny, family, dropout, None)
    recomputed, other = losses_and_gradients(tiny, family, dropout, {"use_reentrant": False})
    assert plain == recomputed
    assert gradients.keys() == other.keys() and len(gradients) > 40
    for name, gradient in gradients.items():
        assert gradient.abs().sum() > 0, name
        assert (gradient - other[name]).norm() <= 1e-5 * gradient.norm(), name


def test_dropout_is_really_on_in_that_comparison(family, tiny):
    assert losses_and_gradients(tiny, family, 0.3, None)[0] != losses_and_gradients(tiny, family, 0.0, None)[0]


def test_reentrant_checkpointing_is_refused(family, tiny):
    with pytest.raises(RuntimeError, match=r"carries no gradient: .*use_reentrant=False"):
        losses_and_gradients(tiny, family, 0.0, {"use_reentrant": True})
