"""Token metrics: sums per dataset, names and averages, checked by hand and against a plain formula."""

import math
from dataclasses import replace

import pytest
import torch

from distill_engine.losses.quality import accuracy_counts, token_scores
from distill_engine.metrics.scores import Scores
from distill_engine.metrics.tally import Tally
from distill_engine.values import IGNORED_LABEL

VOCABULARY = 5


def predicting(tokens: torch.Tensor, strength: float = 3.0) -> torch.Tensor:
    """Logits whose argmax is `tokens`."""
    return torch.nn.functional.one_hot(tokens.clamp(min=0), VOCABULARY).float() * strength


def sums_of(student: torch.Tensor, teacher: torch.Tensor | None, batch, datasets: int) -> torch.Tensor:
    """From whole logits."""
    tally = Tally() if teacher is None else Tally("agreement")
    return tally.sums(Scores(token_scores(student, teacher, batch.labels), batch), datasets)


def quality_values(sums: torch.Tensor, labels, with_teacher: bool, average="macro") -> dict[str, float]:
    return (Tally("agreement") if with_teacher else Tally()).values(sums, labels, average)


@pytest.fixture
def batch(tiny):
    """Three examples of dataset 0, 1, 1; the last is a dummy without labels."""
    made = tiny.batch(contexts=(2, 2, 2), labels=(3, 3, 3))
    labels = torch.tensor([[3, 4, 2], [4, 2, IGNORED_LABEL], [IGNORED_LABEL] * 3])
    return replace(made, labels=labels, dataset_ids=torch.tensor([0, 1, 1]))


STUDENT_SAYS = torch.tensor([[3, 1, 2], [4, 2, 0], [0, 0, 0]])
TEACHER_SAYS = torch.tensor([[3, 1, 0], [4, 3, 0], [0, 0, 0]])
LOG_PARTITION = math.log(math.exp(3) + 4)  # of predicting()
RIGHT, WRONG = LOG_PARTITION - 3, LOG_PARTITION  # -log p of the label


def test_sums_by_hand(batch):
    sums = sums_of(predicting(STUDENT_SAYS), predicting(TEACHER_SAYS), batch, datasets=3)
    assert sums.dtype == torch.float64
    tokens, loss, _, same_loss, _, correct, _, exact, examples, agreeing, _ = sums.T.tolist()
    assert loss == same_loss == pytest.approx([2 * RIGHT + WRONG, 2 * RIGHT, 0.0], rel=1e-6)
    assert (tokens, correct, agreeing) == ([3, 2, 0], [2, 2, 0], [2, 1, 0])
    assert (exact, examples) == ([0, 1, 0], [1, 1, 0])  # the dummy counts nowhere


def test_padding_may_hold_anything(batch):
    student, teacher = predicting(STUDENT_SAYS), predicting(TEACHER_SAYS)
    expected = sums_of(student, teacher, batch, datasets=2)
    student[batch.labels == IGNORED_LABEL] = math.nan
    teacher[batch.labels == IGNORED_LABEL] = math.inf
    assert torch.equal(sums_of(student, teacher, batch, datasets=2), expected)


def test_half_precision_logits_are_summed_in_float32(batch):
    logits = predicting(STUDENT_SAYS, strength=11.0)
    expected = sums_of(logits, None, batch, datasets=2)
    assert torch.allclose(sums_of(logits.bfloat16(), None, batch, datasets=2), expected, rtol=1e-6)


def test_named_values(batch):
    sums = sums_of(predicting(STUDENT_SAYS), predicting(TEACHER_SAYS), batch, datasets=2)
    values = quality_values(sums, ["bst", "wow"], with_teacher=True)
    losses = [(2 * RIGHT + WRONG) / 3, RIGHT]
    assert values["bst/loss"] == pytest.approx(losses[0]) and values["wow/loss"] == pytest.approx(losses[1])
    assert values["bst/ppl"] == pytest.approx(math.exp(losses[0]))
    assert values["ppl"] == pytest.approx((math.exp(losses[0]) + math.exp(losses[1])) / 2)  # macro, as ParlAI
    assert values["loss"] == pytest.approx(sum(losses) / 2)
    assert values["ppl_micro"] == pytest.approx(math.exp((4 * RIGHT + WRONG) / 5))
    assert (values["bst/token_accuracy"], values["wow/token_accuracy"]) == pytest.approx((2 / 3, 1.0))
    assert (values["bst/token_exact_match"], values["wow/token_exact_match"]) == (0.0, 1.0)
    assert (values["bst/teacher_agreement"], values["wow/teacher_agreement"]) == pytest.approx((2 / 3, 1 / 2))
    assert values["token_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert values["token_exact_match"] == 0.5
    assert values["teacher_agreement"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_without_a_teacher_there_is_no_agreement(batch):
    sums = sums_of(predicting(STUDENT_SAYS), None, batch, datasets=2)
    assert not [name for name in quality_values(sums, ["a", "b"], with_teacher=False) if "agreement" in name]


def test_a_task_without_tokens_is_left_out_of_every_mean(batch):
    sums = sums_of(predicting(STUDENT_SAYS), None, batch, datasets=3)
    values = quality_values(sums, ["a", "b", "absent"], with_teacher=False)
    assert not [name for name in values if name.startswith("absent/")]
    assert values == quality_values(sums[:2], ["a", "b"], with_teacher=False)
    assert quality_values(torch.zeros(2, Tally("agreement").columns), ["a", "b"], with_teacher=True) == {}


def test_sums_add_up_over_batches(batch, tiny):
    whole = sums_of(predicting(STUDENT_SAYS), predicting(TEACHER_SAYS), batch, datasets=2)
    parts = [
        sums_of(predicting(STUDENT_SAYS[[n]]), predicting(TEACHER_SAYS[[n]]), tiny.rows(batch, [n]), datasets=2)
        for n in (2, 0, 1)
    ]
    assert torch.allclose(sum(parts), whole, rtol=1e-12)


def test_perplexity_saturates_at_infinity():
    sums = torch.tensor([[2, 2000.0, 2, 2000.0, 2, 0, 2, 0, 1]], dtype=torch.float64)
    values = quality_values(sums, ["a"], with_teacher=False)
    assert values["ppl"] == values["ppl_micro"] == math.inf and values["loss"] == 1000.0


def test_accuracy_counts_for_training(batch):
    correct, agreeing = accuracy_counts(predicting(STUDENT_SAYS), predicting(TEACHER_SAYS), batch.labels)
    assert (correct.item(), agreeing.item()) == (4, 3)
    assert accuracy_counts(predicting(STUDENT_SAYS), None, batch.labels)[1] is None


def test_micro_pools_what_macro_averages(batch):
    sums = sums_of(predicting(STUDENT_SAYS), predicting(TEACHER_SAYS), batch, datasets=3)
    labels = ["one", "two", "empty"]
    macro, micro = (quality_values(sums, labels, True, average) for average in ("macro", "micro"))
    assert macro == quality_values(sums, labels, True)
    assert macro["ppl"] == pytest.approx((math.exp((2 * RIGHT + WRONG) / 3) + math.exp(RIGHT)) / 2)
    assert micro["ppl"] == micro["ppl_micro"] == macro["ppl_micro"] == pytest.approx(
        math.exp((4 * RIGHT + WRONG) / 5)
    )  # fmt: skip
    assert micro["loss"] == pytest.approx((4 * RIGHT + WRONG) / 5)
    assert (micro["token_accuracy"], micro["teacher_agreement"], micro["token_exact_match"]) == (4 / 5, 3 / 5, 1 / 2)
    assert set(micro) == set(macro)
    assert {name for name in macro if macro[name] != micro[name]} == {
        "ppl", "loss", "token_accuracy", "teacher_agreement"
    }  # fmt: skip
