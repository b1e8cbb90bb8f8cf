"""Projections: only what is asked for, ParlAI's start; and the module that the engine trains."""

import pytest
import torch

from distill_engine.models.adapter import adapt
from distill_engine.student.projections import Projections, StudentModule, feature_tensors
from distill_engine.values import AttentionKind, FeatureRequest, Stack

HIDDEN = {Stack.ENCODER: (0, 1), Stack.DECODER: (0, 2)}
EVERYTHING = FeatureRequest(
    encoder_output=True, embeddings=frozenset(Stack), hidden=HIDDEN, attention={AttentionKind.CROSS: (1,)}
)


def names(request: FeatureRequest) -> set[str]:
    parameters = {name: p.shape for name, p in Projections(request, 4, 6, seed=0).named_parameters()}
    assert all(shape == ((6, 4) if name.endswith("weight") else (6,)) for name, shape in parameters.items())
    return {name.rpartition(".")[0] for name in parameters}


def test_only_requested_features_have_a_projection():
    assert names(FeatureRequest()) == set()
    assert names(FeatureRequest(encoder_output=True)) == {"encoder_output"}
    assert names(FeatureRequest(embeddings=frozenset({Stack.DECODER}))) == {"embedding.decoder"}
    assert names(FeatureRequest(attention={AttentionKind.CROSS: (0,)})) == set()
    assert names(FeatureRequest(hidden={Stack.DECODER: (3,)})) == {"hidden.decoder.3"}
    assert names(EVERYTHING) == {
        "encoder_output", "embedding.encoder", "embedding.decoder",
        "hidden.encoder.0", "hidden.encoder.1", "hidden.decoder.0", "hidden.decoder.2",
    }  # fmt: skip


def test_initial_values_are_parlais_and_come_from_the_seed():
    torch.manual_seed(4)
    before = torch.get_rng_state()
    one, same, other = (Projections(EVERYTHING, 64, 80, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    matrices = {name: p for name, p in one.named_parameters() if name.endswith("weight")}
    assert len({p.sum().item() for p in matrices.values()}) == len(matrices) == 7
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        if name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)
            assert abs(parameter.mean().item()) < 0.001
            assert not torch.equal(parameter, other.get_parameter(name))


def test_each_feature_goes_through_its_own_map_and_the_rest_stays(tiny):
    batch = tiny.batch()
    features = adapt(tiny.model("blenderbot"))(batch, EVERYTHING)
    projections = Projections(EVERYTHING, 16, 20, seed=0)
    projected = projections(features)
    assert torch.equal(projected.logits, features.logits) and projected.attention == features.attention
    assert torch.equal(projected.encoder_output.tensor(), projections.encoder_output(features.encoder_output))
    for stack in Stack:
        own = projections.embedding[stack.value]
        assert torch.equal(projected.embeddings[stack].tensor(), own(features.embeddings[stack]))
    assert projected.hidden.keys() == features.hidden.keys() == {(s, n) for s, layers in HIDDEN.items() for n in layers}
    for (stack, n), hidden in projected.hidden.items():
        own = projections.get_submodule(f"hidden.{stack.value}.{n}")
        assert torch.equal(hidden.tensor(), own(features.hidden[stack, n])) and hidden.tensor().shape[-1] == 20


def test_the_trained_module_shows_projected_features_and_lists_every_tensor(family, tiny):
    model, batch = tiny.model(family), tiny.batch(family)
    projections = Projections(EVERYTHING, 16, 20, seed=0)
    student = StudentModule(adapt(model), projections).train()
    features, tensors = student(batch, EVERYTHING)
    assert [id(t) for t in tensors] == [id(t) for t in feature_tensors(features)]
    assert len(tensors) == 1 + 1 + 2 + 4 + 2  # logits, encoder output, embeddings, hidden, query and key
    assert features.encoder_output.tensor().shape[-1] == 20
    products = [features.encoder_output, *features.embeddings.values(), *features.hidden.values()]
    sum(product.tensor().sum() for product in products).backward()
    assert all(p.grad is not None for p in projections.parameters())
    assert student.model is model  # what is exported: no projection in it
    assert not [name for name in model.state_dict() if "projection" in name or "hidden." in name]


def test_without_projections_features_are_the_adapters(family, tiny):
    model, batch = tiny.model(family), tiny.batch(family)
    features, _ = StudentModule(adapt(model), None)(batch, EVERYTHING)
    expected = adapt(model)(batch, EVERYTHING)
    for one, other in zip(feature_tensors(features), feature_tensors(expected), strict=True):
        assert torch.equal(one, other)


def test_a_feature_that_cannot_learn_is_refused_in_training_only(tiny):
    model, batch = tiny.model("bart"), tiny.batch("bart")
    student = StudentModule(adapt(model), None).train()
    request = FeatureRequest(embeddings=frozenset({Stack.ENCODER}))
    model.model.shared.weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"carries no gradient: .*no requested layer may be frozen"):
        student(batch, request)
    student.eval()
    assert student(batch, request)[0].embeddings
    with torch.no_grad():
        assert student.train()(batch, request)[0].embeddings
