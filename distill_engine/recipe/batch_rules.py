"""Rules about how batches are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distill_engine.data.config import BatchSection
from distill_engine.data.kinds.named import kind_of
from distill_engine.families.lookup import family_named
from distill_engine.recipe.problem import Problem
from distill_engine.recipe.schema import Recipe
from distill_engine.registry import names


def skipped_positions(recipe: Recipe) -> int:
    """Positions that the student's decoder reads and does not predict, where its family is given."""
    family = recipe.student.family
    return family_named(family).decoder_skips if family in names("families") else 0


def longest_example(recipe: Recipe, context: int, skipped: int) -> int:
    """Positions that it takes up of batch.max_tokens, as the run counts them (data.order.buckets.Cost).

    context  positions of an encoder that reads or hears all it may    skipped  of the decoder, before the first label
    """
    multiple = recipe.batch.pad_to_multiple_of
    padded = (-(-length // multiple) * multiple for length in (context, recipe.data.label_tokens))
    return sum(padded) + skipped


def token_budget_holds_an_example(recipe: Recipe) -> Iterator[Problem]:
    """batch.max_tokens has room for the longest text that there may be; the teacher's rules know windows of sound, and
    what the decoder of its family reads before a text."""
    if any(kind_of(source).inputs != "audio" for source in recipe.data.tasks):
        yield from budget_problems(recipe, recipe.data.context_tokens, skipped_positions(recipe), "data.context_tokens")


def budget_problems(recipe: Recipe, context: int, skipped: int, called: str) -> Iterator[Problem]:
    """A token budget below the longest example; arguments as `longest_example`, `called`: what the context is."""
    budget, needed, rows = recipe.batch.max_tokens, longest_example(recipe, context, skipped), recipe.batch.per_rank
    if budget is not None and needed > budget:
        begun = f", and {skipped} before it" if skipped else ""
        yield Problem(
            "batch.max_tokens",
            f"is {budget}, but one example may take up {needed} positions ({called} {context}, data.label_tokens "
            f"{recipe.data.label_tokens}, both rounded up to batch.pad_to_multiple_of {recipe.batch.pad_to_multiple_of}"
            f"{begun})",
            "A micro-batch holds at least one example",
            f"Set batch.max_tokens: {needed * rows} for batches like those of batch.per_rank: {rows}, or at least "
            f"{needed}",
        )


def length_window_is_used(recipe: Recipe) -> Iterator[Problem]:
    """Nothing is sorted by length without a token budget."""
    batch = recipe.batch
    default = BatchSection.model_fields["length_window"].default
    if batch.max_tokens is None and batch.length_window != default:
        yield Problem(
            "batch.length_window",
            f"is {batch.length_window}, but batch.max_tokens is null",
            "Only batches with a token budget are sorted by length",
            "Set batch.max_tokens, or remove batch.length_window",
        )


def sorting_saves_and_changes_nothing(recipe: Recipe) -> Iterator[Problem]:
    """batch.sort_step needs several micro-batches of a fixed number of examples, whose cut no loss can see."""
    batch = recipe.batch
    if not batch.sort_step:
        return
    if batch.max_tokens is not None:
        yield Problem(
            "batch.sort_step",
            f"is true, and batch.max_tokens is {batch.max_tokens}",
            "A token budget has batches of one length already",
            "Remove one of them",
        )
    elif batch.accumulation_steps == 1:
        yield Problem(
            "batch.sort_step",
            "is true, but batch.accumulation_steps is 1",
            "All that a rank reads in a step is then one micro-batch, as long as its longest example",
            f"Set batch.accumulation_steps to 2 or more (and batch.per_rank: {max(1, batch.per_rank // 2)} for as many "
            "examples), or remove batch.sort_step",
        )
    if recipe.losses.definition == "parlai":
        yield Problem(
            "batch.sort_step",
            "is true, but losses.definition is parlai",
            "It weighs all micro-batches alike and counts padding, so which examples share one changes the step",
            "Set losses.definition: invariant, or remove batch.sort_step",
        )


def temperature_has_datasets(recipe: Recipe) -> Iterator[Problem]:
    """A single dataset has no shares to flatten."""
    if recipe.data.temperature != 1.0 and len(recipe.data.tasks) == 1:
        yield Problem(
            "data.temperature",
            f"is {recipe.data.temperature:g}, but data.tasks has one entry",
            "It flattens the shares of several datasets",
            "Remove it, or name more datasets",
        )


BATCH_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    token_budget_holds_an_example,
    length_window_is_used,
    sorting_saves_and_changes_nothing,
    temperature_has_datasets,
)
