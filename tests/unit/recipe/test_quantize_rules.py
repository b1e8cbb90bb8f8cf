"""Last steps for int8: which they are, and what is refused, all of it at once."""

import pytest

from distill_engine.recipe.identity import recipe_difference, recipe_digest
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.problem import RecipeError
from distill_engine.recipe.quantize_rules import int8_note, quantized_from
from distill_engine.recipe.rules import check_recipe
from distill_engine.recipe.schema import Recipe

BASE = {
    "name": "int8",
    "teacher": {"path": "a/teacher"},
    "student": {"quantize": "int8"},
    "losses": {"weights": {"prediction": 1.0}},
    "data": {"datasets": [{"name": "demo"}]},
    "optimizer": {"learning_rate": 1e-3},
    "stop": {"max_steps": 400},
    "validation": {"every_steps": 5},
}


def recipe_of(**sections) -> Recipe:
    return Recipe.model_validate(BASE | {key: BASE.get(key, {}) | value for key, value in sections.items()})


@pytest.mark.parametrize(
    "steps, last, begins", [(None, 400, 360), (None, 7, 6), (None, 1, 0), (5, 7, 2), (400, 400, 0)]
)
def test_the_last_steps(steps, last, begins):
    recipe = recipe_of(student={"quantize_steps": steps}, stop={"max_steps": last})
    assert not check_recipe(recipe) and quantized_from(recipe) == begins
    assert "not yet trained for int8" in int8_note(recipe, begins)
    assert f"trained for int8 since step {begins}" in int8_note(recipe, begins + 1)


def test_without_it_nothing_is_int8s():
    recipe = recipe_of(student={"quantize": None})
    assert quantized_from(recipe) is None and int8_note(recipe, 400) == "" and not check_recipe(recipe)


def test_all_problems_at_once():
    recipe = recipe_of(
        student={"quantize_steps": 500, "share_encoder": True, "decoder_layers": 1},
        stop={"max_epochs": 2.5, "max_seconds": 60},
    )
    said = {problem.path: str(problem) for problem in check_recipe(recipe)}
    assert set(said) == {"student.quantize_steps", "student.share_encoder", "stop.max_epochs", "stop.max_seconds"}
    assert "is 500, but the run has 400 steps (stop.max_steps)" in said["student.quantize_steps"]
    assert "Set student.freeze_encoder: true instead" in said["student.share_encoder"]
    assert "is 2.5, but student.quantize is int8" in said["stop.max_epochs"]
    endless = recipe_of(stop={"max_steps": None}, student={"quantize_steps": 5})
    (problem,) = check_recipe(endless)
    assert problem.path == "stop.max_steps" and quantized_from(endless) is None
    (problem,) = check_recipe(recipe_of(student={"quantize": None, "quantize_steps": 3}))
    assert problem.path == "student.quantize_steps" and "student.quantize is null" in str(problem)


def test_other_arithmetic_is_refused(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "name: int4\nstudent: {quantize: int4}\ndata: {datasets: [{name: demo}]}\noptimizer: {learning_rate: 1}\n"
    )
    with pytest.raises(RecipeError, match=r"student\.quantize .*int8"):
        load_recipe(file)


def test_where_they_begin_is_mathematics():
    """A run may not move its last steps by another end."""
    one, other = recipe_of(), recipe_of(stop={"max_steps": 500})
    assert recipe_digest(one) != recipe_digest(other)
    assert recipe_difference(one, other).mathematics == ("stop.max_steps: 400 -> 500",)
    free = [recipe_of(student={"quantize": None}, stop={"max_steps": steps}) for steps in (400, 500)]
    assert recipe_digest(free[0]) == recipe_digest(free[1])
