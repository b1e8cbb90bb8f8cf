"""Rules about `losses.balance`: each is broken once, alone, and says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from distill_engine.recipe.identity import recipe_difference, recipe_digest
from distill_engine.recipe.rules import check_recipe
from distill_engine.recipe.schema import Recipe

WEIGHTS = {"hidden": 1, "prediction": 1}


def recipe(stop: dict[str, Any] | None = None, metric: str = "ppl", **losses: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "distilled",
            "teacher": {"path": "a/teacher"},
            "losses": {"weights": WEIGHTS} | losses,
            "data": {"datasets": [{"name": "demo"}]},
            "optimizer": {"learning_rate": 1e-3},
            "validation": {"every_steps": 100, "metric": metric},
            "stop": stop or {},
        }
    )


@pytest.mark.parametrize(
    "losses",
    [
        {},
        {"balance": "initial_scale", "balance_start_steps": 5, "balance_limit": 10},
        {"balance": "gradient_norm", "balance_every_steps": 50, "balance_smoothing": 0, "balance_limit": 1},
        {"balance": "gradient_alignment", "balance_every_steps": 50, "balance_smoothing": 0, "balance_limit": 1},
        {"balance": "gradient_norm", "weights": {"task": 0, "hidden": 1}},
        {"balance": "initial_scale", "weights": {"task": 0, "self_attention": 1, "prediction": 1}},
        {"balance": "initial_scale", "feature_steps": 100},
    ],
)
def test_sound(losses):
    assert check_recipe(recipe(**losses)) == []


@pytest.mark.parametrize(
    "changes, path, words",
    [
        ({"balance": "initial_scale", "weights": {}}, "losses.balance", "task is the only term"),
        ({"balance": "gradient_norm", "weights": {"task": 0, "prediction": 1}}, "losses.balance", "only term"),
        ({"balance": "gradient_alignment", "weights": {"prediction": 1}}, "losses.balance", "(task, prediction)"),
        ({"balance": "gradient_alignment", "weights": {"task": 0, "hidden": 1}}, "losses.balance", "terms (hidden)"),
        ({"balance_start_steps": 5}, "losses.balance_start_steps", "losses.balance is none"),
        ({"balance": "gradient_norm", "balance_start_steps": 5}, "losses.balance_start_steps", "initial_scale"),
        ({"balance": "initial_scale", "balance_every_steps": 5}, "losses.balance_every_steps", "gradient_norm"),
        ({"balance": "initial_scale", "balance_smoothing": 0.5}, "losses.balance_smoothing", "gradient_norm"),
        ({"balance_limit": 5}, "losses.balance_limit", "losses.balance is none"),
        ({"balance": "initial_scale", "stop": {"max_steps": 20}}, "losses.balance_start_steps", "step 20"),
        ({"balance": "gradient_alignment", "balance_start_steps": 5}, "losses.balance_start_steps", "initial_scale"),
        ({"balance": "gradient_norm", "metric": "total"}, "validation.metric", "cannot be compared"),
        ({"balance": "gradient_alignment", "metric": "total"}, "validation.metric", "cannot be compared"),
        (
            {"balance": "initial_scale", "balance_start_steps": 101, "metric": "total"},
            "validation.metric",
            "before they are fixed",
        ),
        ({"feature_steps": 9, "balance": "gradient_norm"}, "losses.feature_steps", "pull less and less"),
        ({"feature_steps": 9, "weights": {"prediction": 1}}, "losses.feature_steps", "(task, prediction) do not fade"),
        ({"feature_steps": 9, "weights": {"task": 0, "hidden": 1}}, "losses.feature_steps", "(hidden) fade"),
        ({"feature_steps": 9, "metric": "total"}, "validation.metric", "Weights that fall"),
        ({"feature_steps": 19, "balance": "initial_scale"}, "losses.balance_start_steps", "faded at step 19"),
    ],
)
def test_broken(changes, path, words):
    problems = check_recipe(recipe(**changes))
    assert [problem.path for problem in problems] == [path], [str(problem) for problem in problems]
    assert words in str(problems[0])


def test_the_total_of_fixed_factors_may_decide():
    assert check_recipe(recipe(balance="initial_scale", metric="total")) == []


@pytest.mark.parametrize(
    "change",
    [
        {"balance": "initial_scale"}, {"balance_start_steps": 5}, {"balance_every_steps": 5},
        {"balance_smoothing": 0.5}, {"balance_limit": 5.0}, {"feature_steps": 9},
    ],
)  # fmt: skip
def test_balance_is_part_of_what_a_run_is(change):
    before, after = recipe(), recipe(**change)
    assert recipe_digest(before) != recipe_digest(after)
    difference = recipe_difference(before, after)
    assert len(difference.mathematics) == 1 and not difference.allowed


@pytest.mark.parametrize(
    "losses",
    [{"balance": "uncertainty"}, {"balance_limit": 0.5}, {"balance_smoothing": 1.0}, {"balance_every_steps": 0}],
)
def test_values_that_mean_nothing(losses):
    with pytest.raises(ValueError, match=next(iter(losses))):
        recipe(**losses)
