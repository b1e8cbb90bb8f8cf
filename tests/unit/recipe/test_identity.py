"""What may change between restarts of one run, and what makes it another run."""

import pytest

from distill_engine.recipe.identity import recipe_difference, recipe_digest
from distill_engine.recipe.schema import Recipe


def distilled(**teacher) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "distilled",
            "teacher": {"path": "a/teacher", **teacher},
            "data": {"datasets": [{"name": "demo"}]},
            "optimizer": {"learning_rate": 1e-3},
        }
    )


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("placement", "node", "teacher.placement: 'auto' -> 'node'"),
        ("window", True, "teacher.window: false -> true"),
        ("overlap", True, "teacher.overlap: false -> true"),
    ],
)
def test_where_the_teacher_lives_may_change_on_resume(key, value, line):
    difference = recipe_difference(distilled(), distilled(**{key: value}))
    assert difference.allowed == (line,) and difference.mathematics == ()
    assert recipe_digest(distilled()) == recipe_digest(distilled(**{key: value}))


def test_the_teacher_may_not():
    difference = recipe_difference(distilled(), distilled(revision="abc"))
    assert difference.mathematics == ("teacher.revision: null -> 'abc'",) and difference.allowed == ()
    assert recipe_digest(distilled()) != recipe_digest(distilled(revision="abc"))
