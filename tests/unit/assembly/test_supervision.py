"""Which teacher layers are compared: those of the named teacher, and none where nobody compares layers."""

import json
from types import SimpleNamespace

import pytest

from distill_engine.assembly.builder import supervision_of
from distill_engine.families.lookup import family_of
from distill_engine.families.shape import Sizes
from distill_engine.recipe.load import load_recipe
from distill_engine.values import Stack


@pytest.fixture
def shapes(root):
    config = json.loads((root / "recipes" / "demo" / "teacher" / "config.json").read_text())
    first = family_of(config).shape(config)
    return first, first.resized(Sizes(encoder_layers=4, decoder_layers=12))


@pytest.mark.parametrize(
    ("weights", "student", "wanted"),
    [
        ("{hidden: 1}", "{encoder_layers: 2, decoder_layers: 3}", ((1, 3), (3, 7, 11))),
        ("{hidden: 1}", "{}", ((1, 3), (1, 3, 5, 7, 9, 11))),  # as deep as the first
        ("{self_attention: 1}", "{encoder_layers: 1, decoder_layers: 2}", ((3,), (5, 11))),
        ("{cross_attention: 1}", "{init: random, encoder_layers: 99, decoder_layers: 2}", ((), (5, 11))),
        ("{prediction: 1}", "{init: random, encoder_layers: 99, decoder_layers: 99}", ((), ())),
    ],
)
def test_layers_are_those_of_the_teacher_that_is_compared(root, shapes, weights, student, wanted):
    asked = [f"losses.weights={weights}", f"student={student}"]
    ready = SimpleNamespace(recipe=load_recipe(root / "recipes" / "demo.yaml", asked))
    ready.teacher_shape, ready.compared_shape = shapes
    assert supervision_of(ready) == dict(zip(Stack, wanted, strict=True))
