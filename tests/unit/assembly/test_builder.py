"""The probe batch, on which teachers and exports are tried: within the position tables, as all of training is."""

from types import SimpleNamespace

import numpy as np
import pytest

from distill_engine.assembly.teacher import probe_batch, teacher_of
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenised import TokenisedDataset, TokenLimits
from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.recipe.problem import RecipeError
from distill_engine.teachers.protocol import Teacher
from distill_engine.values import Stack

BART = SequenceLayout(1, 0, 2, (0,), (2,), (2, 0), 1)
LIMITS = TokenLimits(context=58, label=57)  # with one more for BART's start tokens: all that 58 positions hold


@pytest.mark.parametrize("examples", [1, 3])
def test_padding_of_the_probe_batch_keeps_to_the_limits(examples):
    bounds = np.array([[0, 100, 100, 200]] * examples, np.int64)
    dataset = TokenisedDataset(np.full(200, 7, np.int32), bounds, BART, LIMITS)
    recipe = SimpleNamespace(batch=SimpleNamespace(pad_to_multiple_of=8))
    ready = SimpleNamespace(recipe=recipe, train_datasets=(dataset,), layout=BART)
    probe = probe_batch(ready)
    assert probe.inputs.input_ids.shape == (min(examples, 2), 58)
    assert probe.decoder_input_ids.shape == probe.labels.shape == (min(examples, 2), 58)


class Speechless(Teacher):
    provides = frozenset({"logits"})


def test_a_source_that_lacks_what_losses_compare_is_refused_with_what_is_missing(monkeypatch):
    source = SimpleNamespace(open=lambda parts: Speechless())
    monkeypatch.setattr("distill_engine.assembly.teacher.load", lambda seam, name: source)
    teacher = SimpleNamespace(source="speechless", window=False, cache=None)
    recipe = SimpleNamespace(
        name="tiny", teacher=teacher, teachers=[], losses=SimpleNamespace(temperature=1.0), features_of=0
    )
    ready = SimpleNamespace(
        recipe=recipe, teacher_shape=SimpleNamespace(vocab=9), teacher_folder="t", others=(), features_of=0
    )
    ranks = SimpleNamespace(rank=0, world_size=1, device=None)
    weights = LossWeights(task=1.0, encoder=1.0, prediction=1.0)
    goal = Objective(weights, dict.fromkeys(Stack, ()))
    with pytest.raises(RecipeError, match=r"teacher\.source is speechless, which does not give encoder_output"):
        teacher_of(ready, ranks, goal, {}, "fp32", False, print)
    goal = Objective(LossWeights(task=1.0, prediction=1.0), dict.fromkeys(Stack, ()))
    assert isinstance(teacher_of(ready, ranks, goal, {}, "fp32", False, print), Speechless)
