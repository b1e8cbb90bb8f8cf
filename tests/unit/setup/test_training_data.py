"""What a recipe's words about weights and batches come to: the real loaders, over small datasets."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill_engine.assembly.resizing import split_of
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenised import TokenisedDataset, TokenLimits
from distill_engine.recipe.schema import Recipe
from distill_engine.setup.training_data import mixture_of, train_loader, validation_loader

LAYOUT = SequenceLayout(0, 1, 2, (), (2,), (1,), 0)
ONE_RANK = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))


def dataset(episodes: int, turns: int) -> TokenisedDataset:
    """Episodes of so many turns; a text is three tokens, a label two."""
    begins = np.arange(episodes * turns) * 5
    starts = begins - begins % (5 * turns)
    bounds = np.stack([starts, begins + 3, begins + 3, begins + 5], axis=1)
    return TokenisedDataset(np.full(5 * len(begins), 7, np.int32), bounds, LAYOUT, TokenLimits(32, 8))


def ready(**sections):
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "data": {"datasets": [{"name": "long"}, {"name": "short"}], **sections.pop("data", {})},
            "optimizer": {"learning_rate": 1e-3},
            **sections,
        }
    )
    datasets = (dataset(10, 6), dataset(60, 2))
    return SimpleNamespace(
        recipe=recipe, layout=LAYOUT, train_datasets=datasets, valid_datasets=datasets, dataset_labels=("long", "short")
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, [3 / 4, 1 / 4]),  # equal chances of episodes with 6 and 2 turns
        ({"weights_mean": "examples"}, [1 / 2, 1 / 2]),
        ({"weights_mean": "passes"}, [1 / 3, 2 / 3]),
        ({"temperature": 2.0}, [3**0.5 / (1 + 3**0.5), 1 / (1 + 3**0.5)]),
    ],
)
def test_shares_are_what_the_weights_mean(data, expected):
    assert mixture_of(ready(data=data)).shares == pytest.approx(expected)


def loader_of(prepared, say=lambda _: None):
    return train_loader(prepared, ONE_RANK, say, split_of(prepared.recipe, ONE_RANK.world_size))


def test_shares_are_told_and_kept():
    said: list[str] = []
    with loader_of(ready(batch={"per_rank": 80}), said.append) as loader:
        batches = [loader.next_group()[0] for _ in range(5)]
    assert len(said) == 1 and "long 75.0% (60 examples" in said[0]
    counts = sum(torch.bincount(batch.dataset_ids, minlength=2) for batch in batches)
    assert counts.tolist() == pytest.approx([300, 100], abs=4)


def test_a_token_budget_replaces_the_number_of_examples():
    with loader_of(ready(batch={"per_rank": 3, "max_tokens": 400})) as loader:
        batches = [loader.next_group()[0] for _ in range(6)]
        assert loader.examples == sum(len(batch.dataset_ids) for batch in batches)
    positions = [batch.inputs.input_ids.numel() + batch.labels.numel() for batch in batches]
    assert max(positions) <= 400 and sum(positions) > 6 * 200


def test_validation_reads_every_example_once():
    batches = list(validation_loader(ready(validation={"per_rank_batch": 50}), ONE_RANK))
    assert max(len(batch.dataset_ids) for batch in batches) == 50
    assert sum(torch.bincount(batch.dataset_ids, minlength=2) for batch in batches).tolist() == [60, 120]
