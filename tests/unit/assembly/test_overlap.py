"""What teacher.overlap makes of a run's teacher and data, and where it does nothing."""

from types import SimpleNamespace

import pytest
import tiny_models
import torch

from distill_engine.assembly import overlap
from distill_engine.data.order.ahead import AheadLoader
from distill_engine.data.order.loader import TrainLoader
from distill_engine.data.order.mixture import Mixture
from distill_engine.teachers.ahead import AheadTeacher
from distill_engine.teachers.protocol import Teacher
from distill_engine.train.config import StopSection
from distill_engine.train.progress import Progress
from distill_engine.values import FeatureRequest, Features

CPU = torch.device("cpu")


class Asked(Teacher):
    """Answers with the labels that it was asked about."""

    def features(self, group, request):
        for batch in group:
            yield Features(logits=batch.labels)


@pytest.fixture
def loader():
    source = tiny_models.Source(tiny_models.examples(12, "blenderbot", seed=3))
    sizes = {"per_rank": 2, "accumulation_steps": 2, "pad_to_multiple_of": 1, "rank": 0, "world_size": 1}
    with TrainLoader([source], Mixture([12], [1.0], seed=5), tiny_models.layout("blenderbot"), **sizes) as loader:
        yield loader


def recipe(asked: bool) -> SimpleNamespace:
    return SimpleNamespace(teacher=SimpleNamespace(overlap=asked))


def test_on_a_cpu_it_says_that_it_does_nothing(loader):
    said, teacher = [], Asked()
    assert overlap.overlapped(recipe(True), teacher, loader, CPU, said.append) == (teacher, loader)
    assert "a CPU has no streams" in said[0]
    assert overlap.overlapped(recipe(False), teacher, loader, CPU, said.append) == (teacher, loader)
    assert overlap.overlapped(recipe(True), None, loader, CPU, said.append) == (None, loader)
    assert len(said) == 1


def test_where_there_are_streams_teacher_and_data_go_together(loader, monkeypatch):
    monkeypatch.setattr(overlap, "has_streams", lambda device: True)
    teacher, batches = overlap.overlapped(recipe(True), Asked(), loader, CPU, print)
    assert isinstance(teacher, AheadTeacher) and isinstance(batches, AheadLoader)
    for taken in (4, 8, 12, 16):  # over the end of the epoch
        group = batches.next_group()
        found = [features.logits for features in teacher.features(group, FeatureRequest())]
        assert all(torch.equal(one, batch.labels) for one, batch in zip(found, group, strict=True))
        assert (batches.examples, loader.examples) == (taken, taken + 4)


@pytest.mark.parametrize(("limits", "passes"), [({}, 7), ({"max_steps": 3}, 6), ({"max_epochs": 1.0}, 6)])
def test_the_last_step_begins_no_pass_for_another(loader, monkeypatch, limits, passes):
    """Two micro-batches of two examples a step, of twelve; three steps are an epoch."""
    monkeypatch.setattr(overlap, "has_streams", lambda device: True)
    asked, made = Asked(), []
    plain = asked.features
    asked.features = lambda group, request: made.append(len(group)) or plain(group, request)
    teacher, batches = overlap.overlapped(recipe(True), asked, loader, CPU, print)
    trainer = SimpleNamespace(
        batches=batches, policies=SimpleNamespace(limits=StopSection(**limits)), progress=Progress()
    )
    assert overlap.ending_on_time(trainer) is trainer
    for _ in range(3):
        assert len(list(teacher.features(batches.next_group(), FeatureRequest()))) == 2
        trainer.progress.count_step(applied=True)
    assert len(made) == passes
