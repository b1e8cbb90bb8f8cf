"""The batches that one rank reads in a run, from what was prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from distill_engine.cluster.ranks import Ranks
from distill_engine.data.order.buckets import BatchPlan, SortedStepPlan
from distill_engine.data.order.loader import TrainLoader, ValidationLoader, lengths_in, token_budget_plan
from distill_engine.data.order.mixture import Mixture, example_weights, mixture_line
from distill_engine.data.order.split import BatchSplit
from distill_engine.setup.prepare import Prepared


class RankFacts(Ranks, Protocol):
    """The ranks, and where this one computes."""

    @property
    def device(self) -> torch.device:
        """The device of its models."""


def train_loader(ready: Prepared, ranks: RankFacts, say: Callable[[str], None], split: BatchSplit) -> TrainLoader:
    """The endless training order of the recipe; `say` hears of the datasets' shares when there are several.

    split  how the ranks share a step
    """
    batch = ready.recipe.batch
    mixture = mixture_of(ready)
    if len(ready.train_datasets) > 1:
        say(mixture_line(ready.dataset_labels, mixture.sizes, mixture.shares))
    plan: BatchPlan | None = None
    if batch.sort_step:
        plan = SortedStepPlan(mixture, split.per_rank, lengths_in(ready.train_datasets), ranks.world_size)
    elif batch.max_tokens is not None:
        plan = token_budget_plan(
            ready.train_datasets,
            mixture,
            ready.layout,
            max_tokens=batch.max_tokens,
            window=batch.length_window,
            pad_to_multiple_of=batch.pad_to_multiple_of,
        )
    return TrainLoader(
        ready.train_datasets,
        mixture,
        ready.layout,
        per_rank=split.per_rank,
        accumulation_steps=split.accumulation_steps,
        pad_to_multiple_of=batch.pad_to_multiple_of,
        rank=ranks.rank,
        world_size=ranks.world_size,
        plan=plan,
        pin_memory=ranks.device.type == "cuda",
    )


def mixture_of(ready: Prepared) -> Mixture:
    """The order of the training examples: what the recipe's weights mean, at its temperature."""
    data, datasets = ready.recipe.data, ready.train_datasets
    sizes = [len(dataset) for dataset in datasets]
    given = [dataset.weight for dataset in data.datasets]
    episodes = [dataset.episodes for dataset in datasets]
    return Mixture(
        sizes, example_weights(given, sizes, episodes, data.weights_mean, data.temperature), ready.recipe.seed
    )


def validation_loader(ready: Prepared, ranks: RankFacts) -> ValidationLoader:
    """Every validation example once over all ranks."""
    recipe = ready.recipe
    return ValidationLoader(
        ready.valid_datasets,
        ready.layout,
        per_rank=recipe.validation.per_rank_batch or recipe.batch.per_rank,
        rank=ranks.rank,
        world_size=ranks.world_size,
        pad_to_multiple_of=recipe.batch.pad_to_multiple_of,
        pin_memory=ranks.device.type == "cuda",
    )
