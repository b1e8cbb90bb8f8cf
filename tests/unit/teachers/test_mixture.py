"""Several teachers: the mean of their probabilities at the losses' temperature, exact; the rest is the first one's."""

import math

import pytest
import torch

from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.teachers.mixture import Mixture
from distill_engine.teachers.protocol import Teacher
from distill_engine.values import FeatureRequest, Features, Stack


class Fixed(Teacher):
    """Gives logits that were made before; notes what it was asked for."""

    def __init__(self, *logits):
        self.logits, self.asked = logits, []

    def features(self, group, request):
        self.asked.append(request)
        for _, logits in zip(group, self.logits, strict=True):
            output = torch.full((1, 2, 3), float(logits[0, 0, 0])) if request.encoder_output else None
            yield Features(logits=logits.clone() if request.logits else None, encoder_output=output)


def test_two_tokens_worked_by_hand():
    """Softmaxes (1/4, 3/4) and (1/2, 1/2), weights 1 : 3: the mean is (7/16, 9/16)."""
    one, other = torch.tensor([[[0.0, math.log(3)]]]), torch.zeros(1, 1, 2)
    (seen,) = Mixture([Fixed(one), Fixed(other)], [1.0, 3.0], 1.0).features([None], FeatureRequest())
    torch.testing.assert_close(seen.logits.exp(), torch.tensor([[[7 / 16, 9 / 16]]]))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_softmax_at_the_temperature_is_the_mean_in_float64(temperature, dtype):
    draw = torch.Generator().manual_seed(4)
    group = [None, None]
    logits = [[30 * torch.randn(2, 3, 7, generator=draw) for _ in group] for _ in range(3)]
    for batch in logits:
        for one in batch:
            one[..., 5] = torch.finfo(dtype).min if dtype is torch.float16 else -1e20  # never predicted
    teachers, weights = [Fixed(*(one.to(dtype) for one in batch)) for batch in logits], [2.0, 1.0, 1.0]
    found = list(Mixture(teachers, weights, temperature).features(group, FeatureRequest()))
    for number, seen in enumerate(found):
        exact = [(batch[number].to(dtype).double() / temperature).softmax(-1) for batch in logits]
        wanted = 0.5 * exact[0] + 0.25 * exact[1] + 0.25 * exact[2]
        got = (seen.logits / temperature).softmax(-1)
        assert seen.logits.dtype == torch.float32 and torch.isfinite(seen.logits).all()
        torch.testing.assert_close(got.double(), wanted, rtol=2e-6, atol=1e-12)
        assert (got[..., 5] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_the_divergence_from_the_mean(tiny, temperature):
    batch = tiny.batch(seed=1)
    student, *three = (
        tiny.features(batch, dict.fromkeys(Stack, 0), vocabulary=tiny.VOCABULARY, seed=seed) for seed in range(4)
    )
    teachers = [Fixed(one.logits.detach()) for one in three]
    (seen,) = Mixture(teachers, [1.0, 1.0, 2.0], temperature).features([batch], FeatureRequest())
    goal = Objective(LossWeights(task=0.0, prediction=1.0), dict.fromkeys(Stack, ()), temperature=temperature)
    found = goal.terms(student, seen, batch)["prediction"].sum
    exact = [(one.logits.detach().double() / temperature).softmax(-1) for one in three]
    mean = 0.25 * exact[0] + 0.25 * exact[1] + 0.5 * exact[2]
    log_student = (student.logits.detach().double() / temperature).log_softmax(-1)
    wanted = (mean * (mean.log() - log_student)).sum(-1)[batch.label_mask].sum() * temperature**2
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_all_else_is_the_firsts_and_nothing_is_asked_in_vain():
    logits = torch.randn(1, 2, 4)
    first, second = Fixed(logits), Fixed(logits + 1)
    mixture = Mixture([first, second], [1.0, 1.0], 1.0)
    (seen,) = mixture.features([None], FeatureRequest(encoder_output=True))
    assert torch.equal(seen.encoder_output, torch.full((1, 2, 3), float(logits[0, 0, 0])))
    assert second.asked == [FeatureRequest()]
    (seen,) = mixture.features([None], FeatureRequest(logits=False, encoder_output=True))
    assert seen.logits is None and seen.encoder_output is not None and len(second.asked) == 1
    assert mixture.lacking(FeatureRequest(logits=False, head=True)) == ["head"]


def test_features_may_be_of_another_one_by_name():
    logits = torch.randn(1, 2, 4)
    first, second = Fixed(logits), Fixed(logits + 1)
    plain = Mixture([first, second], [1.0, 1.0], 1.0)
    mixture = Mixture([first, second], [1.0, 1.0], 1.0, features_of=1)
    for request in (FeatureRequest(encoder_output=True), FeatureRequest(logits=False, encoder_output=True)):
        (wanted,), (seen,) = plain.features([None], request), mixture.features([None], request)
        assert torch.equal(seen.encoder_output, wanted.encoder_output + 1)
        assert (wanted.logits is seen.logits is None) or torch.equal(wanted.logits, seen.logits)
    assert mixture.engine is first.engine
