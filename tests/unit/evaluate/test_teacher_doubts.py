"""The teacher's own numbers at each validation, and the warnings about one that knows nothing, or less."""

from dataclasses import replace

import pytest
import torch

from distill_engine.evaluate.validation import Validator
from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.teachers.live import LiveTeacher
from distill_engine.values import Features

GOAL = Objective(LossWeights(task=1, prediction=1), {})
COMMON = 4  # of the vocabulary's tokens labels are made of; both models know that much


class OneRank:
    device = torch.device("cpu")

    def sum(self, tensor):
        return tensor


class Speaks:
    """Logits of a model: for the labels that it takes for the right ones, and for the common tokens."""

    def __init__(self, vocabulary, believed=0.0, common=4.0):
        self.vocabulary, self.believed, self.common = vocabulary, believed, common
        self.passes = 0

    def features(self, batch, request):
        self.passes += 1
        logits = torch.zeros(*batch.labels.shape, self.vocabulary)
        logits[..., :COMMON] = self.common
        answer = answers(batch.inputs.input_ids, batch.labels.shape[1])
        return Features(
            logits=logits.scatter_add(2, answer[..., None], torch.full_like(logits[..., :1], self.believed))
        )


def answers(contexts, length):
    """What belongs to each context, token by token; common tokens."""
    number = contexts.sum(dim=1, keepdim=True)
    return (number * 7 + torch.arange(length)[None] * number) % COMMON


def batches(tiny, count=6, shuffled=False):
    made = []
    for seed in range(count):
        batch = tiny.batch(contexts=(5, 4, 3), labels=(4, 4, 4), seed=seed)
        right = torch.where(batch.label_mask, answers(batch.inputs.input_ids, 4), -100)
        made.append(replace(batch, labels=right, dataset_ids=torch.tensor([0, 1, 0])))
    if shuffled:
        labels = [batch.labels for batch in made]
        made = [replace(batch, labels=(other + 1) % COMMON) for batch, other in zip(made, labels, strict=True)]
    return made


def validated(given, student, teacher):
    validator = Validator(given, GOAL, ["one", "two"], OneRank())
    return validator.run(student, LiveTeacher(teacher)), validator.doubt


def test_the_teachers_own_numbers_stand_beside_the_students_without_another_pass(tiny):
    given = batches(tiny)
    student, teacher = Speaks(tiny.VOCABULARY), Speaks(tiny.VOCABULARY, believed=1.5)
    values, doubt = validated(given, student, teacher)
    assert teacher.passes == student.passes == len(given) and doubt is None
    alone, _ = validated(given, teacher, student)  # the other way round: what it is as a student
    for path in ("", "one/", "two/"):
        assert values[f"{path}teacher_ppl"] == pytest.approx(alone[f"{path}ppl"], rel=1e-12)
        assert values[f"{path}teacher_token_accuracy"] == alone[f"{path}token_accuracy"] == 1.0
        assert values[f"{path}teacher_ppl"] < values[f"{path}ppl"]
    plain = Validator(given, Objective(LossWeights(task=1), {}), ["one", "two"], OneRank())
    assert not [name for name in plain.run(student, None) if "teacher" in name] and plain.doubt is None


@pytest.mark.parametrize("believed", [0.0, 30.0], ids=["all alike", "sure of the wrong"])
def test_a_teacher_no_better_than_chance_is_told(tiny, believed):
    teacher = Speaks(tiny.VOCABULARY, believed, common=0.0)
    given = batches(tiny, shuffled=believed > 0)
    values, doubt = validated(given, Speaks(tiny.VOCABULARY), teacher)
    assert "no better than chance" in doubt and f"vocabulary of {tiny.VOCABULARY} tokens" in doubt
    if not believed:
        assert values["teacher_ppl"] == pytest.approx(tiny.VOCABULARY)


def test_a_student_that_beats_its_teacher_is_told(tiny):
    """Targets that belong to other contexts: what the teacher knows of them is wrong."""
    values, doubt = validated(
        batches(tiny, shuffled=True), Speaks(tiny.VOCABULARY), Speaks(tiny.VOCABULARY, believed=1.5)
    )
    assert values["ppl"] < values["teacher_ppl"] < tiny.VOCABULARY / 2
    assert "student predicts validation labels better than its teacher" in doubt and "shuffled" in doubt


def test_noise_is_no_advantage(tiny):
    """Better on some examples and worse on as many: whatever the sign of the sum."""
    given = [*batches(tiny, 3), *batches(tiny, 8, shuffled=True)]
    values, doubt = validated(given, Speaks(tiny.VOCABULARY), Speaks(tiny.VOCABULARY, believed=0.9))
    assert values["ppl"] < values["teacher_ppl"] and doubt is None
    same, doubt = validated(given, Speaks(tiny.VOCABULARY), Speaks(tiny.VOCABULARY, believed=1e-3))
    assert doubt is None and same["teacher_ppl"] == pytest.approx(same["ppl"], rel=0.01)
