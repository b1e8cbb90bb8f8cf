"""Rules about whose text the student learns on (rollout.source)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distill_engine.recipe.problem import Problem, shown
from distill_engine.recipe.schema import Recipe
from distill_engine.rollouts.config import RolloutSection

GOLD, STUDENT = "gold", "student"


def gold_has_no_settings(recipe: Recipe) -> Iterator[Problem]:
    """The data's own labels are as they are."""
    for key, field in RolloutSection.model_fields.items():
        value = getattr(recipe.rollout, key)
        if recipe.rollout.source == GOLD and value != field.default:
            what = f"is {shown(value)}, but rollout.source is {GOLD}"
            yield Problem(f"rollout.{key}", what, fix=f"Set rollout.source: {STUDENT}, or remove the {key}")


def samples_have_a_judge(recipe: Recipe) -> Iterator[Problem]:
    """Only a teacher can say how good the student's own samples are."""
    if recipe.rollout.source == STUDENT and not recipe.losses.weights.needs_teacher:
        what = f"is {STUDENT}, but no term that compares with a teacher has a weight (losses.weights)"
        rule = "The student's samples are compared with the teacher alone"
        yield Problem("rollout.source", what, rule, f"Set losses.weights.prediction: 1, or rollout.source: {GOLD}")


def samples_fit(recipe: Recipe) -> Iterator[Problem]:
    """Position tables and memory are made for labels of data.label_tokens."""
    asked, limit = recipe.rollout.new_tokens, recipe.data.label_tokens
    if asked is not None and asked > limit:
        what = f"is {asked}, but data.label_tokens is {limit}"
        fix = f"Set rollout.new_tokens: {limit} or less, or a larger data.label_tokens"
        yield Problem("rollout.new_tokens", what, "A sample is at most as long as a label", fix)


ROLLOUT_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    gold_has_no_settings,
    samples_have_a_judge,
    samples_fit,
)
