"""A teacher that predicts gold labels no better than chance is refused; one that knows some of them is not."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_families
import torch

from distill_engine.assembly.knowledge import require_knowledge
from distill_engine.models.adapter import adapt
from distill_engine.recipe.problem import RecipeError

SETTING = SimpleNamespace(name="tiny"), Path("some/teacher"), lambda value: value  # one rank agrees with itself
BATCHES = [tiny_families.batch("t5-small", seed=seed) for seed in range(3)]


class Plain:
    def __init__(self, model):
        self._adapter = adapt(model)

    @torch.no_grad()
    def features(self, batch, request):
        return self._adapter(batch, request)


def trained():
    """Three steps of a good optimizer are enough to know which of 64 tokens the few labels are."""
    model = tiny_families.model("t5-small")
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(3):
        for batch in BATCHES:
            labels = {"decoder_input_ids": batch.decoder_input_ids, "labels": batch.labels}
            model(**batch.inputs.keywords, **labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_random_weights_are_refused_with_what_to_look_at():
    said = r"teacher.path is some/teacher, whose perplexity on \d+ gold(.|\n)*64 tokens(.|\n)*allow_noise"
    with pytest.raises(RecipeError, match=said):
        require_knowledge(Plain(tiny_families.model("t5-small")), BATCHES, *SETTING)


def test_a_teacher_that_knows_something_is_taken_and_a_few_tokens_prove_nothing():
    require_knowledge(Plain(trained()), BATCHES, *SETTING)
    few = tiny_families.batch("t5-small", contexts=(3,), labels=(4,))
    require_knowledge(Plain(tiny_families.model("t5-small")), [few], *SETTING)
