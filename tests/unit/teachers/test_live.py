"""One teacher pass for all micro-batches of a step: the same features, losses and gradients as one pass for each."""

import weakref

import pytest
import torch

from distill_engine.losses.config import LossWeights
from distill_engine.losses.kernels.dispatch import Kernels
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.student.projections import feature_tensors
from distill_engine.teachers.live import LiveTeacher, joined
from distill_engine.values import AttentionKind, FeatureRequest, Features, Stack

ALL_TERMS = LossWeights(
    task=1.0, encoder=0.5, embedding=2.0, hidden=1.5, self_attention=0.3, cross_attention=0.2, prediction=3.0
)
FUSED = Kernels("chunked", "chunked", "chunked")
REQUESTS = {
    "logits": FeatureRequest(),
    "head": FeatureRequest(logits=False, head=True),
    "encoder output": FeatureRequest(logits=False, encoder_output=True),
    "embeddings": FeatureRequest(logits=False, embeddings=frozenset(Stack)),
    "hidden": FeatureRequest(logits=False, hidden={Stack.ENCODER: (1,), Stack.DECODER: (0, 2)}),
    "attention": FeatureRequest(logits=False, attention=dict.fromkeys(AttentionKind, (0, 1))),
    "nothing": FeatureRequest(logits=False),
}


class Teacher:
    """A real one that counts its passes."""

    def __init__(self, model) -> None:
        self.module = adapt(model)
        self.passes = 0

    @torch.no_grad()
    def features(self, batch, request) -> Features:
        self.passes += 1
        return self.module(batch, request)


@pytest.fixture(scope="module", params=["blenderbot", "bart"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def teacher(tiny, family):
    return Teacher(tiny.model(family))


@pytest.fixture(scope="module")
def group(tiny, family):
    """Micro-batches of other sizes, lengths and paddings; one of a single row, one without labels."""
    return [
        tiny.batch(family, (5, 3, 9), (4, 6, 1), seed=1),
        tiny.batch(family, (2,), (8,), seed=2, pad_to=(4, 12)),
        tiny.batch(family, (7, 12), (3, 2), seed=3),
        tiny.batch(family, (1,), (0,), seed=4, pad_to=(1, 1)),
    ]


def all_tensors(features: Features) -> list[torch.Tensor]:
    head = [] if features.head is None else [features.head.hidden, features.head.embedding]
    return [*feature_tensors(features), *head]


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_kind_of_feature_is_that_of_a_pass_of_its_own(teacher, group, kind, count):
    part, before = group[-count:], teacher.passes
    together = list(LiveTeacher(teacher, window=True).features(part, REQUESTS[kind]))
    assert teacher.passes == before + 1
    assert len(together) == count
    for batch, features in zip(part, together, strict=True):
        for one, other in zip(all_tensors(features), all_tensors(teacher.features(batch, REQUESTS[kind])), strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernels", [Kernels(), FUSED], ids=["reference", "fused"])
@pytest.mark.parametrize("definition", ["parlai", "invariant"])
def test_losses_and_gradients_are_those_without_it(tiny, teacher, family, group, definition, kernels):
    goal = Objective(ALL_TERMS, {Stack.ENCODER: (1,), Stack.DECODER: (0, 2)}, definition, kernels=kernels)
    divisors = goal.divisors(group, lambda tensor: tensor, 1)
    found = {}
    for at_once in (False, True):
        student = adapt(tiny.model(family, seed=1, encoder_layers=1, decoder_layers=2))
        features = LiveTeacher(teacher, window=at_once).features(group, goal.teacher_request())
        values = []
        for batch, divisor in zip(group, divisors, strict=True):
            terms = goal.terms(student(batch, goal.student_request()), next(features), batch)
            goal.total(terms, divisor).backward()
            values += [value.sum.detach() for value in terms.values()]
        gradients = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
        found[at_once] = torch.stack(values), torch.cat(gradients)
    for with_window, without in zip(found[True], found[False], strict=True):
        assert with_window.abs().max() > 0.1
        torch.testing.assert_close(with_window, without, rtol=2e-5, atol=2e-5)


def test_a_padded_window_has_every_row_at_its_place(group):
    whole = joined(group)
    rows = sum(len(batch.dataset_ids) for batch in group)
    longest = max(batch.inputs.input_ids.shape[1] for batch in group)
    assert whole.inputs.input_ids.shape == whole.inputs.attention_mask.shape == (rows, longest)
    assert whole.labels.shape == whole.decoder_input_ids.shape
    assert whole.context_mask.sum() == sum(batch.context_mask.sum() for batch in group)
    assert whole.label_mask.sum() == sum(batch.label_mask.sum() for batch in group)
    first = len(group[0].dataset_ids)
    torch.testing.assert_close(whole.inputs.input_ids[first, : group[1].inputs.length], group[1].inputs.input_ids[0])
    assert whole.example_ids.tolist() == [number for batch in group for number in batch.example_ids.tolist()]


@pytest.mark.parametrize(("window", "passes"), [(True, 1), (False, 4)])
def test_passes_are_one_per_window_or_one_per_micro_batch(teacher, group, window, passes):
    before = teacher.passes
    assert len(list(LiveTeacher(teacher, window=window).features(group, REQUESTS["hidden"]))) == 4
    assert teacher.passes - before == passes


def test_without_a_window_the_features_of_a_micro_batch_are_gone_before_the_next_are_computed(teacher, group):
    handed_out: list[weakref.ref] = []
    left: list[int] = []

    class Looks:
        def features(self, batch, request):
            left.append(sum(one() is not None for one in handed_out))
            return teacher.features(batch, request)

    features = LiveTeacher(Looks()).features(group, REQUESTS["encoder output"])
    for _ in group:
        handed_out.append(weakref.ref(next(features).encoder_output))
    assert left == [0, 0, 0, 0]
