"""Balancing with real tiny models: sizes are right, new factors hold at once, and nothing else of the step changes."""

import math
from types import SimpleNamespace

import pytest
import tiny_models
import torch

from distill_engine.evaluate.validation import Validator
from distill_engine.teachers.live import LiveTeacher
from distill_engine.telemetry.averages import Averages
from distill_engine.telemetry.metrics import describe
from distill_engine.train.balance import GradientAlignment, GradientNorm, InitialScale
from distill_engine.train.balancing import by_gradient, by_value, typical_ratio
from distill_engine.train.meter import Meter
from distill_engine.train.term_gradients import TermGradients

NO_LIMIT = 1e12


class OneRank:
    """A process group of one, counting its reductions."""

    device = torch.device("cpu")

    def __init__(self):
        self.reductions = 0

    def sum(self, tensor):
        self.reductions += 1
        return tensor.clone()

    def broadcast(self, value):
        return value


@pytest.fixture(scope="module")
def world(world):
    return SimpleNamespace(**vars(world), ranks=OneRank())


def gradient_balancer(world, scale=1.0, smoothing=0.0, every=1):
    gradients = TermGradients(world.goal, world.module, None, lambda: scale, world.ranks.device)
    policy = GradientNorm(tuple(world.goal.term_weights), every, smoothing, NO_LIMIT)
    return by_gradient(policy, world.goal, gradients, world.ranks), gradients


def alignment_balancer(world, scale=1.0, smoothing=0.0, every=1):
    gradients = TermGradients(world.goal, world.module, None, lambda: scale, world.ranks.device)
    policy = GradientAlignment(world.goal.term_weights, every, smoothing, NO_LIMIT)
    return by_gradient(policy, world.goal, gradients, world.ranks, "prediction"), gradients


def value_balancer(world, goal=None, steps=1):
    policy = InitialScale(tuple(world.goal.term_weights), steps, NO_LIMIT)
    return by_value(policy, goal or world.goal, world.module, world.ranks)


def measure(balancer, world, attempt=0, seed=0):
    torch.manual_seed(seed)
    balancer.before_backward(attempt, world.batch, world.teacher_features, world.divisor)


def weighted(world, factors=None, seed=0):
    """The terms' parts of the total, by a forward pass with the same dropout."""
    torch.manual_seed(seed)
    student_features, _ = world.module(world.batch, world.goal.student_request())
    terms = world.goal.terms(student_features, world.teacher_features, world.batch)
    return world.goal.weighted(terms, world.divisor, factors)


def gradients_by_backward(world, factors=None):
    """Term -> its own gradient in each weight matrix, float64 [elements]."""
    found = {}
    for term in world.goal.term_weights:
        world.module.zero_grad(set_to_none=True)
        weighted(world, factors)[term].backward()
        matrices = [p for p in world.module.model.parameters() if p.requires_grad and p.ndim > 1]
        found[term] = [(torch.zeros_like(p) if p.grad is None else p.grad).double().flatten() for p in matrices]
    world.module.zero_grad(set_to_none=True)
    return found


def norms_by_backward(world, factors=None):
    """Term -> norm of its own gradient in each weight matrix."""
    return {term: [one.norm().item() for one in own] for term, own in gradients_by_backward(world, factors).items()}


def test_agreement_is_the_mean_cosine_over_the_matrices_that_the_reference_reaches(world):
    balancer, gradients = alignment_balancer(world, scale=256.0)
    whole = gradients_by_backward(world)
    measure(balancer, world)
    found, reference = gradients.agreements(), whole["prediction"]
    for term, own in whole.items():
        cosines = [
            (one @ other / (one.norm() * other.norm())).item() if one.any() else 0.0
            for one, other in zip(own, reference, strict=True)
            if other.any()
        ]
        assert found[term] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5), term
    assert found["prediction"] == pytest.approx(1.0)
    reached = {term: sum(bool(one.any()) for one in own) for term, own in whole.items()}
    assert reached["encoder"] < reached["prediction"], "what a term does not reach counts as 0"


def test_a_reference_changes_neither_norms_nor_what_the_others_pull_together(world):
    plain, (aligned, gradients) = gradient_balancer(world)[0], alignment_balancer(world)
    measure(plain, world)
    measure(aligned, world)
    weights, agreements = world.goal.term_weights, gradients.agreements()
    others = [term for term in weights if term != "task"]
    ratios = {term: aligned.factors[term] / plain.factors[term] for term in others}
    assert sum(weights[term] * ratios[term] for term in others) == pytest.approx(sum(weights[o] for o in others))
    best = max(others, key=lambda term: agreements[term])
    assert best == "prediction" and max(ratios, key=ratios.get) == best
    assert aligned.factors["task"] == 1.0


def test_gradients_that_are_not_finite_agree_with_nothing(world):
    balancer, gradients = alignment_balancer(world, scale=math.inf)
    measure(balancer, world)
    assert all(math.isnan(value) for value in gradients.agreements().values())
    assert balancer.factors == dict.fromkeys(world.goal.term_weights, 1.0)


def test_initial_scale_makes_weighted_terms_as_large_as_their_weights_say(world):
    balancer = value_balancer(world)
    measure(balancer, world)
    parts, weights = weighted(world, balancer.factors), world.goal.term_weights
    task = parts["task"].item() / weights["task"]
    assert balancer.factors["task"] == 1.0
    for term, weight in weights.items():
        assert parts[term].item() == pytest.approx(weight * task, rel=1e-4), term


def test_gradient_norm_makes_terms_pull_as_their_weights_say_in_the_typical_matrix(world):
    balancer, _ = gradient_balancer(world)
    measure(balancer, world)
    norms, weights = norms_by_backward(world, balancer.factors), world.goal.term_weights
    for term, weight in weights.items():
        ratios = [one / task for one, task in zip(norms[term], norms["task"], strict=True) if one and task]
        assert ratios
        typical = math.exp(sum(map(math.log, ratios)) / len(ratios))
        assert typical == pytest.approx(weight / weights["task"], rel=1e-3), term
    reached = {term: sum(one > 0 for one in own) for term, own in norms.items()}
    assert 0 < reached["encoder_hidden"] < reached["decoder_hidden"] == reached["task"], "terms reach different depths"


def test_what_is_logged_has_the_new_factors(world):
    balancer, gradients = gradient_balancer(world)
    before = norms_by_backward(world)
    measure(balancer, world)
    whole = TermGradients(world.goal, world.module, 1, lambda: 1.0, world.ranks.device)
    torch.manual_seed(0)
    whole.measure(0, world.batch, world.teacher_features, world.divisor, world.ranks.sum, balancer.factors)
    assert gradients.norms() == pytest.approx(whole.norms(), rel=1e-3)
    matrices = TermGradients(world.goal, world.module, 1, lambda: 1.0, world.ranks.device)
    torch.manual_seed(0)
    matrices.measure(0, world.batch, world.teacher_features, world.divisor, world.ranks.sum)
    for term, own in matrices.matrix_norms().items():
        assert own == pytest.approx(before[term], rel=1e-4), term


def test_ratios_of_matrices():
    assert typical_ratio([8.0, 0.0, 1.0, 3.0], [1.0, 5.0, 2.0, 0.0]) == pytest.approx(2.0), "those that both reach"
    assert typical_ratio([0.0, 2.0], [1.0, 0.0]) == 0.0
    assert math.isnan(typical_ratio([math.inf, 1.0], [1.0, 1.0])) and math.isnan(typical_ratio([1.0], [math.nan]))


def test_factors_in_force_do_not_change_what_is_measured(world):
    balancer, _ = gradient_balancer(world)
    measure(balancer, world)
    first = balancer.factors
    measure(balancer, world, attempt=1)
    assert balancer.factors == pytest.approx(first, rel=1e-4)


def test_the_loss_scale_is_taken_out(world):
    plain, scaled = gradient_balancer(world)[0], gradient_balancer(world, scale=4096.0)[0]
    for balancer in (plain, scaled):
        measure(balancer, world)
    assert scaled.factors == pytest.approx(plain.factors, rel=1e-4)


@pytest.mark.parametrize("definition", ["invariant", "parlai"])
def test_padding_does_not_matter(world, definition):
    goal = tiny_models.objective(definition=definition)
    balancer = value_balancer(world, goal)
    measure(balancer, world)
    torch.manual_seed(0)
    with torch.no_grad():
        student_features, _ = world.module(world.batch, goal.student_request())
        terms = goal.terms(student_features, world.teacher_features, world.batch)
    means = {term: (value.sum / value.count).item() for term, value in terms.items()}
    assert balancer.factors == pytest.approx({term: means["task"] / mean for term, mean in means.items()}, rel=1e-5)


@pytest.mark.parametrize(
    "make",
    [value_balancer, lambda world: gradient_balancer(world)[0], lambda world: alignment_balancer(world)[0]],
    ids=["value", "norm", "alignment"],
)
def test_the_step_itself_is_left_alone(world, make):
    for weight in world.module.parameters():
        weight.grad = torch.full_like(weight, 7.0)
    torch.manual_seed(11)
    expected = torch.rand(4)
    measure(make(world), world, seed=11)
    assert torch.equal(torch.rand(4), expected)
    assert all(bool((weight.grad == 7.0).all()) for weight in world.module.parameters())
    world.module.zero_grad(set_to_none=True)


def test_measured_once_at_attempts_that_are_due(world):
    balancer = value_balancer(world, steps=2)
    measured = []
    for attempt in range(4):
        for micro_batch in range(2):
            before = world.ranks.reductions
            measure(balancer, world, attempt)
            if world.ranks.reductions > before:
                measured.append((attempt, micro_batch))
    assert measured == [(0, 0), (1, 0)]


def test_a_state_brings_the_factors_back(world):
    balancer, _ = gradient_balancer(world, smoothing=0.5)
    for attempt in range(2):
        measure(balancer, world, attempt, seed=attempt)
    other, _ = gradient_balancer(world, smoothing=0.5)
    other.load_state_dict(balancer.state_dict())
    assert other.factors == balancer.factors
    assert other.read() == balancer.read() and set(map(describe, other.read()))
    assert [describe(name).section for name in other.read()] == ["Loss balance"] * 10


def test_without_factors_the_total_has_the_bits_that_it_had(world):
    own = {
        term: weight * value.sum / world.divisor[index].float()
        for index, ((term, weight), value) in enumerate(zip(world.goal.term_weights.items(), terms(world), strict=True))
    }
    assert torch.equal(torch.stack(list(own.values())).sum(), sum_of(weighted(world)))
    assert world.goal.effective_weights(None) == world.goal.term_weights
    ones = dict.fromkeys(world.goal.term_weights, 1.0)
    assert torch.equal(sum_of(weighted(world, ones)), sum_of(weighted(world)))


def terms(world):
    torch.manual_seed(0)
    student_features, _ = world.module(world.batch, world.goal.student_request())
    return world.goal.terms(student_features, world.teacher_features, world.batch).values()


def sum_of(parts):
    return torch.stack(list(parts.values())).sum()


def test_weighted_metrics_and_totals_have_the_factors(world):
    factors = {term: float(index + 1) for index, term in enumerate(world.goal.term_weights)}
    meter = Meter(world.goal, Averages(), 1, lambda: factors)
    torch.manual_seed(0)
    student_features, _ = world.module(world.batch, world.goal.student_request())
    found, hits = world.goal.terms_and_hits(student_features, world.teacher_features, world.batch)
    meter.add_micro_batch(world.batch, found, hits, 1)
    meter.count_step()
    values = meter.read(lambda tensor: tensor, 1.0)
    for term, part in weighted(world, factors).items():
        assert values[f"train/term/{term}/weighted"] == pytest.approx(part.item(), rel=1e-5), term
    assert values["train/total"] == pytest.approx(sum_of(weighted(world, factors)).item(), rel=1e-5)
    assert valid_total(world, lambda: factors) == pytest.approx(values["train/total"], rel=1e-5)
    assert valid_total(world) == pytest.approx(sum_of(weighted(world)).item(), rel=1e-5)


def valid_total(world, *factors):
    student = SimpleNamespace(features=lambda batch, request: world.module(batch, request)[0])
    teacher = LiveTeacher(SimpleNamespace(features=lambda batch, request: world.teacher(batch, request)[0]))
    ranks = SimpleNamespace(device=torch.device("cpu"), sum=lambda tensor: tensor)
    torch.manual_seed(0)
    return Validator([world.batch], world.goal, ["a", "b"], ranks, "macro", *factors).run(student, teacher)["total"]
