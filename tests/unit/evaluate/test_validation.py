"""Validation: global numbers by the objective's definitions, whatever the batches and fillers."""

import os
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill_engine.evaluate.validation import Validator
from distill_engine.losses.config import LossWeights
from distill_engine.losses.kernels import prediction_blocks
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.teachers.live import LiveTeacher
from distill_engine.values import Stack

LAYERS = {Stack.ENCODER: 1, Stack.DECODER: 2}
OBJECTIVE = Objective(LossWeights(task=1, hidden=3, prediction=2), {Stack.ENCODER: (0,), Stack.DECODER: (0, 1)})


class OneRank:
    """Adds what another rank would have sent."""

    device = torch.device("cpu")

    def __init__(self, other=0.0) -> None:
        self.other, self.sent = other, []

    def sum(self, tensor):
        self.sent.append(tensor)
        return tensor + self.other


class StandIn:
    """Features by batch, as one model would show them."""

    def __init__(self, tiny, seed: int) -> None:
        self.tiny, self.seed, self.seen = tiny, seed, 0

    def features(self, batch, request):
        assert not torch.is_grad_enabled()
        self.seen += 1
        seed = self.seed + int(batch.inputs.input_ids.sum())
        return self.tiny.features(batch, LAYERS, vocabulary=self.tiny.VOCABULARY, seed=seed)


def filler(batch):
    """What a short rank gets: no label, contexts that must not count."""
    return replace(batch, labels=torch.full_like(batch.labels, -100))


def run(tiny, batches, ranks=None, teacher=True, objective=OBJECTIVE):
    student, teacher_model = StandIn(tiny, 0), StandIn(tiny, 1000)
    validator = Validator(batches, objective, ["one", "two"], ranks or OneRank())
    values = validator.run(student, LiveTeacher(teacher_model) if teacher else None)
    assert values.pop("seconds") >= 0
    return values, student.seen, teacher_model.seen


@pytest.fixture
def batches(tiny):
    made = [tiny.batch(contexts=(5, 3), labels=(4, 6), seed=1), tiny.batch(contexts=(2, 7), labels=(1, 3), seed=2)]
    return [replace(made[0], dataset_ids=torch.tensor([0, 1])), replace(made[1], dataset_ids=torch.tensor([1, 1]))]


def test_terms_are_sums_over_counts_of_the_whole_set(tiny, batches):
    values, _, _ = run(tiny, batches)
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for batch in batches:
        student_features, teacher_features = (
            tiny.features(batch, LAYERS, vocabulary=tiny.VOCABULARY, seed=seed + int(batch.inputs.input_ids.sum()))
            for seed in (0, 1000)
        )
        for term, value in OBJECTIVE.terms(student_features, teacher_features, batch).items():
            sums[term] = sums.get(term, 0.0) + value.sum.item()
            counts[term] = counts.get(term, 0.0) + value.count.item()
    total = 0.0
    for term, weight in OBJECTIVE.term_weights.items():
        assert values[f"term/{term}/raw"] == pytest.approx(sums[term] / counts[term], rel=1e-6)
        total += weight * sums[term] / counts[term]
    assert values["total"] == pytest.approx(total, rel=1e-6)
    tokens = {"one": 4, "two": 10}
    pooled = sum(values[f"{name}/loss"] * count for name, count in tokens.items()) / 14
    assert pooled == pytest.approx(values["term/task/raw"], rel=1e-6)


def test_fillers_take_part_in_the_teachers_passes_and_count_nowhere(tiny, batches):
    expected, _, _ = run(tiny, batches)
    values, student, teacher = run(tiny, [*batches, filler(batches[0])])
    assert values == pytest.approx(expected, rel=1e-12)
    assert (student, teacher) == (2, 3)  # the teacher's passes are collective
    empty, student, _ = run(tiny, [filler(batches[0])])  # of a rank without examples
    assert student == 0 and empty["total"] == 0.0


def test_ranks_are_added_up_before_anything_is_divided(tiny, batches):
    expected, _, _ = run(tiny, batches)
    second = OneRank()
    run(tiny, batches[1:], second)
    values, _, _ = run(tiny, batches[:1], OneRank(second.sent[0]))
    assert len(second.sent) == 1  # one reduction
    assert values == pytest.approx(expected, rel=1e-12)


def test_without_a_teacher(tiny, batches):
    values, _, teacher = run(tiny, batches, teacher=False, objective=Objective(LossWeights(task=1), {}))
    assert teacher == 0 and not [name for name in values if "agreement" in name or "hidden" in name]
    assert values["total"] == values["term/task/raw"]


def test_the_set_can_be_validated_again(tiny, batches):
    validator = Validator(batches, OBJECTIVE, ["one", "two"], OneRank())
    first, second = (validator.run(StandIn(tiny, 0), LiveTeacher(StandIn(tiny, 1000))) for _ in range(2))
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}


def test_the_average_over_tasks_is_a_choice(tiny, batches):
    values = {}
    for average in ("macro", "micro"):
        validator = Validator(batches, OBJECTIVE, ["one", "two"], OneRank(), average=average)
        values[average] = validator.run(StandIn(tiny, 0), LiveTeacher(StandIn(tiny, 1000)))
    macro, micro = values["macro"], values["micro"]
    assert macro["ppl"] == pytest.approx((macro["one/ppl"] + macro["two/ppl"]) / 2)
    assert micro["ppl"] == macro["ppl_micro"] != pytest.approx(macro["ppl"])
    assert micro["one/ppl"] == macro["one/ppl"]
    assert micro["loss"] == pytest.approx((4 * macro["one/loss"] + 10 * macro["two/loss"]) / 14)


# ---- without whole logits --------------------------------------------------------------------------------------------

ALL = LossWeights(task=1, encoder=2, embedding=4, hidden=64, self_attention=4, cross_attention=64, prediction=64)


class Real:
    """A tiny model, and whether anybody asked it for whole logits."""

    def __init__(self, tiny, family: str, seed: int, layers: int) -> None:
        sizes = {"width": 16, "decoder_layers": layers, "vocab_size": 150, "max_position_embeddings": 64}
        self.adapter = adapt(tiny.model(family, seed=seed, **sizes).eval())
        self.whole = False

    def features(self, batch, request):
        self.whole |= request.logits
        return self.adapter(batch, request)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that comes into being."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter, at masked lanes
@pytest.mark.parametrize(
    ("implementation", "family", "temperature", "with_teacher"),
    [
        ("chunked", "blenderbot", 1.0, True),
        ("chunked", "bart", 2.0, True),
        ("chunked", "bart", 1.0, False),
        ("triton", "blenderbot", 2.0, True),
    ],
)
def test_blocks_of_logits_give_the_numbers_of_whole_logits(
    tiny, batches, monkeypatch, implementation, family, temperature, with_teacher
):
    if implementation == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton is not interpreted here (DS_ACCELERATOR is not cpu, or Triton is not installed)")
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 1)  # 64 ids at a time
    supervision = {Stack.ENCODER: (0, 1), Stack.DECODER: (0, 2)}
    objective = Objective(ALL if with_teacher else LossWeights(task=1), supervision, temperature=temperature)
    found = []
    for goal in (objective, objective.with_prediction(implementation)):
        student, teacher = Real(tiny, family, 0, 2), Real(tiny, family, 5, 3)
        validator = Validator([*batches, filler(batches[0])], goal, ["one", "two"], OneRank())
        found.append(validator.run(student, LiveTeacher(teacher) if with_teacher else None))
        assert student.whole == (goal is objective) and not (teacher.whole and goal is not objective)
        found[-1].pop("seconds")
    whole, blocks = found
    assert blocks == pytest.approx(whole, rel=2e-6)
    for name in ("token_accuracy", "token_exact_match", *(["teacher_agreement"] if with_teacher else [])):
        assert blocks[name] == whole[name]


def test_exact_matches_are_found_in_blocks(tiny, batches, monkeypatch):
    """Labels that the student predicts: all of one example, all but one of the other."""
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 1)
    student, goal = Real(tiny, "bart", 0, 2), Objective(LossWeights(task=1), {}).with_prediction("chunked")
    with torch.no_grad():
        best = student.adapter(batches[0], Objective(LossWeights(task=1), {}).student_request()).logits.argmax(dim=-1)
    labels = torch.where(batches[0].label_mask, best, -100)
    labels[1, 2] = (labels[1, 2] + 1) % 150
    values = Validator([replace(batches[0], labels=labels)], goal, ["one", "two"], OneRank()).run(student, None)
    assert (values["one/token_exact_match"], values["two/token_exact_match"]) == (1.0, 0.0)
    assert (values["one/token_accuracy"], values["two/token_accuracy"]) == (1.0, pytest.approx(5 / 6))


def test_no_tensor_of_all_logits_is_made(tiny, monkeypatch):
    """60 label tokens: their logits would be the largest tensor by far."""
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 1)
    batch = tiny.batch("bart", contexts=(2, 2), labels=(30, 30))
    largest = {}
    for implementation in ("reference", "chunked"):
        goal = Objective(LossWeights(task=1, prediction=1), {}).with_prediction(implementation)
        models = Real(tiny, "bart", 0, 1), LiveTeacher(Real(tiny, "bart", 1, 1))
        with Largest() as made:
            Validator([batch], goal, ["one"], OneRank()).run(*models)
        largest[implementation] = made.elements
    assert largest["reference"] >= batch.labels.numel() * 150
    assert largest["chunked"] <= len(batch.label_mask.flatten()) * 64
