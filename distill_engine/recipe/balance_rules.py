"""Rules about balancing the loss weights (`losses.balance`)."""

from __future__ import annotations

from collections.abc import Iterator

from distill_engine.losses.config import BALANCED_BY_GRADIENT, LossesSection
from distill_engine.recipe.problem import Problem
from distill_engine.recipe.schema import Recipe

_READ_BY = {  # setting -> the methods that read it
    "balance_start_steps": ("initial_scale",),
    "balance_every_steps": BALANCED_BY_GRADIENT,
    "balance_smoothing": BALANCED_BY_GRADIENT,
    "balance_limit": (*BALANCED_BY_GRADIENT, "initial_scale"),
}


def _used(recipe: Recipe) -> list[str]:
    """Names of the weights above 0."""
    return list(dict.fromkeys(term.weight for term in recipe.losses.weights.terms))


def there_is_something_to_balance(recipe: Recipe) -> Iterator[Problem]:
    """One term alone is in balance."""
    used = _used(recipe)
    if recipe.losses.balance != "none" and len(recipe.losses.weights.terms) == 1:
        yield Problem(
            "losses.balance",
            f"is {recipe.losses.balance}, but {used[0]} is the only term with a weight (losses.weights)",
            "Factors make terms comparable with each other",
            "Set losses.balance: none, or give other terms a weight",
        )


def there_is_something_to_share_out(recipe: Recipe) -> Iterator[Problem]:
    """Alignment shares out what the terms beside the anchor pull."""
    used = _used(recipe)
    if recipe.losses.balance == "gradient_alignment" and len(recipe.losses.weights.terms) == 2:
        yield Problem(
            "losses.balance",
            f"is gradient_alignment, but losses.weights leave two terms ({', '.join(used)})",
            "What all terms but one pull is shared out among them, and here there is one left",
            "Set losses.balance: gradient_norm, which is the same here and cheaper, or give other terms a weight",
        )


def balance_keys_are_used(recipe: Recipe) -> Iterator[Problem]:
    """No setting of a method that is not chosen."""
    losses = recipe.losses
    for key, methods in _READ_BY.items():
        if losses.balance not in methods and getattr(losses, key) != LossesSection.model_fields[key].default:
            yield Problem(
                f"losses.{key}",
                f"is {getattr(losses, key):g}, but losses.balance is {losses.balance}",
                f"Read by: {', '.join(methods)}",
                f"Set losses.balance: {methods[0]}, or remove losses.{key}",
            )


def initial_scale_is_found_in_time(recipe: Recipe) -> Iterator[Problem]:
    """Factors are fixed before the run ends."""
    start, limit = recipe.losses.balance_start_steps, recipe.stop.max_steps
    if recipe.losses.balance == "initial_scale" and limit is not None and start >= limit:
        yield Problem(
            "losses.balance_start_steps",
            f"is {start}, but the run ends at step {limit} (stop.max_steps)",
            "Factors are fixed after the start; a run that is all start never trains with fixed ones",
            f"Set losses.balance_start_steps below {limit}",
        )


def total_is_comparable(recipe: Recipe) -> Iterator[Problem]:
    """The totals of two validations have the same weights."""
    losses, when = recipe.losses, recipe.validation
    if when.metric != "total":
        return
    if losses.feature_steps is not None:
        yield Problem(
            "validation.metric",
            f"is 'total', but losses.feature_steps is {losses.feature_steps}",
            "Weights that fall make the totals of two validations incomparable",
            "Set validation.metric: ppl, or remove losses.feature_steps",
        )
    if losses.balance == "none":
        return
    why = "Its factors change all along"
    if losses.balance == "initial_scale":
        if when.every_steps is None or when.every_steps >= losses.balance_start_steps:
            return
        why = f"It validates before they are fixed (losses.balance_start_steps: {losses.balance_start_steps})"
    yield Problem(
        "validation.metric",
        f"is 'total', but losses.balance is {losses.balance}",
        f"{why}, so the totals of two validations cannot be compared",
        "Set validation.metric: ppl, or fewer losses.balance_start_steps with losses.balance: initial_scale",
    )


def what_fades_is_not_balanced_by_gradient(recipe: Recipe) -> Iterator[Problem]:
    """Factors by gradient would make up for what fades."""
    losses = recipe.losses
    if losses.feature_steps is not None and losses.balance in BALANCED_BY_GRADIENT:
        yield Problem(
            "losses.feature_steps",
            f"is {losses.feature_steps}, but losses.balance is {losses.balance}",
            "Terms that fade pull less and less, and this balance makes terms pull as much as they did",
            "Remove losses.feature_steps, or set losses.balance: none or initial_scale",
        )


def initial_scale_is_found_before_terms_are_gone(recipe: Recipe) -> Iterator[Problem]:
    """What has faded is not computed, so it has no size."""
    losses = recipe.losses
    if losses.balance != "initial_scale" or losses.feature_steps is None:
        return
    if losses.balance_start_steps > losses.feature_steps:
        yield Problem(
            "losses.balance_start_steps",
            f"is {losses.balance_start_steps}, but features have faded at step {losses.feature_steps} "
            "(losses.feature_steps)",
            "Terms that have faded are not computed, so they cannot be measured",
            f"Set losses.balance_start_steps to {losses.feature_steps} or less",
        )


def something_fades(recipe: Recipe) -> Iterator[Problem]:
    """There is a term that compares features."""
    losses = recipe.losses
    if losses.feature_steps is not None and all(term.operand == "logits" for term in losses.weights.terms):
        yield Problem(
            "losses.feature_steps",
            f"is {losses.feature_steps}, but no term with a weight compares features",
            "Terms of logits (" + ", ".join(_used(recipe)) + ") do not fade",
            "Remove losses.feature_steps, or give a feature term a weight",
        )


def something_is_left(recipe: Recipe) -> Iterator[Problem]:
    """There is a term that does not fade."""
    losses, terms = recipe.losses, recipe.losses.weights.terms
    if losses.feature_steps is not None and terms and all(term.operand != "logits" for term in terms):
        yield Problem(
            "losses.feature_steps",
            f"is {losses.feature_steps}, but all terms with a weight compare features",
            "All of them (" + ", ".join(_used(recipe)) + ") fade, and then there is nothing to learn",
            "Remove losses.feature_steps, or give a term of logits a weight (losses.weights.task)",
        )


BALANCE_RULES = (
    there_is_something_to_balance,
    there_is_something_to_share_out,
    balance_keys_are_used,
    what_fades_is_not_balanced_by_gradient,
    something_fades,
    something_is_left,
    initial_scale_is_found_before_terms_are_gone,
    initial_scale_is_found_in_time,
    total_is_comparable,
)
