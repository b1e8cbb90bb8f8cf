"""A teacher one micro-batch ahead: the same features, each pass before the student needs it, two batches at most."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from distill_engine.student.projections import feature_tensors
from distill_engine.teachers.ahead import AheadTeacher
from distill_engine.teachers.live import LiveTeacher
from distill_engine.values import AttentionKind, FeatureRequest, Stack

REQUEST = FeatureRequest(hidden={Stack.DECODER: (0, 2)})
CPU = torch.device("cpu")


class Counting:
    """A real teacher that writes down whose pass it makes."""

    def __init__(self, model) -> None:
        from distill_engine.models.adapter import adapt

        self.model, self.passes, self.made = adapt(model), [], []

    @torch.no_grad()
    def features(self, batch, request):
        self.passes.append(id(batch.labels))
        features = self.model(batch, request)
        self.made.append(weakref.ref(features))
        return features


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model("blenderbot")


@pytest.mark.parametrize("accumulation", [1, 4])
def test_each_pass_is_made_once_in_order_and_before_the_student_works(tiny, model, accumulation):
    engine, plain = Counting(model), Counting(model)
    batches = [tiny.batch("blenderbot", (3 + n, 5), (2, 4), seed=n) for n in range(3 * accumulation + 1)]
    groups = [batches[first : first + accumulation] for first in range(0, 3 * accumulation, accumulation)]
    coming = iter(batches[accumulation::accumulation])
    teacher = AheadTeacher(LiveTeacher(engine), lambda: next(coming), CPU)
    order = [id(batch.labels) for batch in batches]
    number = 0
    for group in groups:
        handed = teacher.features([batch.to("cpu") for batch in group], REQUEST)  # the loop's copies: the same tensors
        for batch in group:
            features = next(handed)
            number += 1
            assert engine.passes == order[: number + 1], "the next pass is under way"
            for one, other in zip(
                feature_tensors(features), feature_tensors(plain.features(batch, REQUEST)), strict=True
            ):
                assert torch.equal(one, other)
            del features
            assert sum(made() is not None for made in engine.made) == 1, "nothing is kept but what comes next"


def test_what_was_not_foreseen_has_a_pass_of_its_own(tiny, model):
    """Another batch, as after a resume; or another request."""
    engine = Counting(model)
    one, other, third = (tiny.batch("blenderbot", (3,), (2,), seed=n) for n in range(3))
    teacher = AheadTeacher(LiveTeacher(engine), lambda: third, CPU)
    next(teacher.features([one], REQUEST))
    found = next(teacher.features([other], REQUEST))
    assert torch.equal(found.logits, Counting(model).features(other, REQUEST).logits)
    found = next(teacher.features([third], FeatureRequest(logits=False)))
    assert found.logits is None


def test_nothing_is_begun_where_nothing_comes(tiny, model):
    engine = Counting(model)
    batches = [tiny.batch("blenderbot", (3,), (2,), seed=n) for n in range(2)]
    teacher = AheadTeacher(LiveTeacher(engine), lambda: None, CPU)
    for number, _ in enumerate(teacher.features(batches, REQUEST)):
        assert len(engine.passes) == 2, number
    next(teacher.features(batches[:1], REQUEST))  # a step that was skipped and did not count as the last after all
    assert len(engine.passes) == 3


def test_a_pass_leaves_nothing_with_its_batch(tiny, model):
    """Masks that a batch keeps are made where they are first asked for: counts are, before a pass is waited for."""
    batch = tiny.batch("blenderbot", (3, 5), (2, 4))
    before = set(vars(batch))
    Counting(model).features(batch, replace(REQUEST, encoder_output=True, attention={AttentionKind.CROSS: (1,)}))
    assert set(vars(batch)) == before
    batch.label_mask  # noqa: B018
    assert set(vars(batch)) > before


def test_it_says_what_the_teacher_says(model):
    teacher = LiveTeacher(Counting(model))
    ahead = AheadTeacher(teacher, list, CPU)
    assert (ahead.provides, ahead.identity, ahead.engine) == (teacher.provides, teacher.identity, teacher.engine)
