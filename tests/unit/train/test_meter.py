"""What a logging interval reports: sums over micro-batches and ranks, divided once."""

import math
from dataclasses import replace

import pytest
import torch

from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.telemetry.averages import Averages
from distill_engine.train.meter import Meter, memory_gib
from distill_engine.values import Stack

SUPERVISION = {Stack.ENCODER: (0,), Stack.DECODER: (0, 1)}
WEIGHTS = LossWeights(task=1, hidden=3, prediction=2)
LAYERS = {Stack.ENCODER: 1, Stack.DECODER: 2}


def one_rank(tensor):
    return tensor


def micro_batches(tiny):
    """Two micro-batches of different size: (batch, student features, teacher features)."""
    for seed, (contexts, labels) in enumerate([((5, 3), (4, 6)), ((2, 2), (1, 2))]):
        batch = tiny.batch(contexts=contexts, labels=labels, seed=seed)
        features = [tiny.features(batch, LAYERS, vocabulary=tiny.VOCABULARY, seed=seed + k) for k in (0, 5)]
        yield batch, *features


def filled(meter: Meter, objective: Objective, group) -> Meter:
    for batch, student, teacher in group:
        meter.add_micro_batch(batch, *objective.terms_and_hits(student, teacher, batch), len(group))
    meter.count_step()
    return meter


def total_of(objective, group) -> float:
    """The loss of the step, by the objective's own arithmetic."""
    divisors = objective.divisors([batch for batch, _, _ in group], one_rank, 1)
    return sum(
        objective.total(objective.terms(student, teacher, batch), row).item()
        for (batch, student, teacher), row in zip(group, divisors, strict=True)
    )


@pytest.mark.parametrize("definition", ["parlai", "invariant"])
def test_terms_add_up_to_the_loss_that_was_minimised(tiny, definition):
    objective = Objective(WEIGHTS, SUPERVISION, definition)
    group = list(micro_batches(tiny))
    values = filled(Meter(objective, Averages(), 1), objective, group).read(one_rank, 2.0)
    assert values["train/total"] == pytest.approx(total_of(objective, group), rel=1e-6)
    for term, weight in objective.term_weights.items():
        raw = values[f"train/term/{term}/raw"]
        assert values[f"train/term/{term}/weighted"] == pytest.approx(weight * raw)
    layers = [values[f"train/term/decoder_hidden/layer/{n}"] for n in (0, 1)]
    assert sum(layers) / 2 == pytest.approx(values["train/term/decoder_hidden/raw"], rel=1e-6)
    assert values["train/ppl"] == pytest.approx(math.exp(values["train/term/task/raw"]))


def test_tokens_padding_and_hits(tiny):
    objective = Objective(WEIGHTS, SUPERVISION)
    group = list(micro_batches(tiny))
    batch, student, teacher = group[0]
    with torch.no_grad():  # the student predicts every label of the first batch, the teacher half of its tokens
        student.logits.zero_().scatter_(-1, batch.labels.clamp(min=0)[..., None], 9.0)
        teacher.logits.copy_(student.logits)
        teacher.logits[1] = -student.logits[1]
        group[1][1].logits.copy_(-torch.nn.functional.one_hot(group[1][0].labels.clamp(min=0), 29).float())
        group[1][2].logits.copy_(group[1][1].logits)
    values = filled(Meter(objective, Averages(), 1), objective, group).read(one_rank, 4.0)
    tokens = (8 + 10) + (4 + 3)  # context and label tokens
    positions = (2 * 5 + 2 * 6) + (2 * 2 + 2 * 2)
    assert values["train/tokens_per_second"] == pytest.approx(tokens / 4.0)
    assert values["train/padding_share"] == pytest.approx((positions - tokens) / positions)
    assert values["train/token_accuracy"] == pytest.approx(10 / 13)
    assert values["train/teacher_agreement"] == pytest.approx((4 + 3) / 13)
    assert values["time/seconds_per_step"] == 4.0


def test_an_interval_is_over_when_it_is_read(tiny):
    objective = Objective(WEIGHTS, SUPERVISION)
    group = list(micro_batches(tiny))
    meter = Meter(objective, Averages(), 1)
    filled(filled(meter, objective, group[:1]), objective, group[1:])
    both = meter.read(one_rank, 2.0)
    assert both["time/seconds_per_step"] == 1.0
    assert both["train/tokens_per_second"] == pytest.approx(25 / 2)
    last = filled(meter, objective, group[1:]).read(one_rank, 1.0)
    alone = filled(Meter(objective, Averages(), 1), objective, group[1:]).read(one_rank, 1.0)
    assert last == alone


def test_ranks_are_added_up(tiny):
    """Two ranks with one micro-batch each report what one rank with both reports."""
    objective = Objective(WEIGHTS, SUPERVISION)
    group = list(micro_batches(tiny))
    together = filled(Meter(objective, Averages(), 1), objective, group).read(one_rank, 2.0)
    sent = []

    def keep(tensor):
        sent.append(tensor)
        return tensor

    filled(Meter(objective, Averages(), 2), objective, group[1:]).read(keep, 2.0)
    apart = filled(Meter(objective, Averages(), 2), objective, group[:1]).read(lambda mine: mine + sent.pop(0), 2.0)
    assert apart == pytest.approx(together)


def test_without_a_teacher_there_is_no_agreement_and_huge_losses_give_infinite_ppl(tiny):
    objective = Objective(LossWeights(task=1), SUPERVISION)
    batch, student, _ = next(micro_batches(tiny))
    with torch.no_grad():
        student.logits.zero_().scatter_(-1, batch.labels.clamp(min=0)[..., None], -1e4)
    meter = Meter(objective, Averages(), 1)
    meter.add_micro_batch(batch, *objective.terms_and_hits(student, None, batch), 1)
    meter.count_step()
    values = meter.read(one_rank, 1.0)
    assert "train/teacher_agreement" not in values and values["train/ppl"] == math.inf


def test_nothing_keeps_the_graph_alive(tiny):
    objective = Objective(WEIGHTS, SUPERVISION)
    averages = Averages()
    filled(Meter(objective, averages, 1), objective, list(micro_batches(tiny)))
    assert averages._packs and not any(held.requires_grad for held in averages._packs.values())


def test_memory_on_a_cpu_is_the_processs_own():
    values = memory_gib(torch.device("cpu"))
    assert values.keys() == {"memory/host_gib"} and 0.01 < values["memory/host_gib"] < 1000


@pytest.mark.parametrize("definition", ["parlai", "invariant"])
def test_the_students_own_samples_have_a_share_and_a_length_and_no_task(tiny, definition):
    objective = Objective(WEIGHTS, SUPERVISION, definition)
    gold, (batch, student, teacher) = micro_batches(tiny)
    sampled = (replace(batch, sampled=True), student, teacher)

    def values(*group):
        return filled(Meter(objective, Averages(), 1, samples=True), objective, group).read(one_rank, 1.0)

    both, alone, own = values(gold, sampled), values(gold), values(sampled)
    assert (both["train/rollout/sampled_share"], both["train/rollout/sample_tokens"]) == (0.5, 1.5)
    for name in ("train/term/task/raw", "train/ppl", "train/token_accuracy"):
        assert both[name] == alone[name] and name not in own
    assert alone["train/rollout/sampled_share"] == 0 and "train/rollout/sample_tokens" not in alone
    assert "train/rollout/sampled_share" not in filled(Meter(objective, Averages(), 1), objective, [gold]).read(
        one_rank, 1.0
    )
    assert own["train/total"] > 0 and own["train/teacher_agreement"] >= 0
