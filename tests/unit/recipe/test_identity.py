"""What may change between restarts of one run, and what makes it another run."""

import pytest

from distill_engine.recipe.identity import recipe_difference, recipe_digest
from distill_engine.recipe.schema import Recipe


def taught(**teacher) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "taught",
            "teacher": {"path": "a/teacher", **teacher},
            "data": {"tasks": [{"name": "demo"}]},
            "optimizer": {"learning_rate": 1e-3},
        }
    )


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("placement", "node", "teacher.placement: 'auto' -> 'node'"),
        ("window", True, "teacher.window: false -> true"),
    ],
)
def test_where_the_teacher_lives_may_change_on_resume(key, value, line):
    difference = recipe_difference(taught(), taught(**{key: value}))
    assert difference.allowed == (line,) and difference.mathematics == ()
    assert recipe_digest(taught()) == recipe_digest(taught(**{key: value}))


def test_who_teaches_may_not():
    difference = recipe_difference(taught(), taught(revision="abc"))
    assert difference.mathematics == ("teacher.revision: null -> 'abc'",) and difference.allowed == ()
    assert recipe_digest(taught()) != recipe_digest(taught(revision="abc"))
