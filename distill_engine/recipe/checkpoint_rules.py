"""Rules about which checkpoints are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distill_engine.recipe.problem import Problem
from distill_engine.recipe.schema import Recipe


def best_checkpoints_are_measured(recipe: Recipe) -> Iterator[Problem]:
    """checkpoint.keep_best ranks checkpoints that were written right after a validation."""
    wanted, when = recipe.checkpoint.keep_best, recipe.validation
    if wanted == 0:
        return
    if not any((when.every_steps, when.every_epochs, when.every_seconds)):
        yield Problem(
            "checkpoint.keep_best",
            f"is {wanted}, but no validation ever runs",
            "It acts on the metric of validations",
            "Set validation.every_steps, every_epochs or every_seconds, or remove it",
        )
    elif not when.save_after_validation:
        yield Problem(
            "checkpoint.keep_best",
            f"is {wanted}, but validation.save_after_validation is false",
            "Only a checkpoint that is written right after a validation can be one of the best",
            "Set validation.save_after_validation: true, or remove it",
        )


CHECKPOINT_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (best_checkpoints_are_measured,)
