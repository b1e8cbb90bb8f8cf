"""Rules about several teachers (`teachers`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distill_engine.recipe.problem import Problem, shown
from distill_engine.recipe.schema import Recipe


def the_first_of_several_is_the_teacher(recipe: Recipe) -> Iterator[Problem]:
    """teacher.path is one of them, or is left out."""
    first = next(iter(recipe.teachers), None)
    for key in ("path", "revision") if first is not None else ():
        asked, wanted = getattr(recipe.teacher, key), getattr(first, key)
        if asked != wanted:
            what = f"is {shown(asked)}, but teachers begins with {shown(wanted)}"
            rule = "Layers are copied from the first of several teachers, and compared with it"
            yield Problem(f"teacher.{key}", what, rule, f"Remove teacher.{key}, or `teachers`")


def several_teachers_have_no_factors(recipe: Recipe) -> Iterator[Problem]:
    """Of the mean's logits."""
    if len(recipe.teachers) < 2:
        return
    if recipe.losses.kernels.prediction == "fused":
        what = f"is fused, but there are {len(recipe.teachers)} teachers (teachers)"
        rule = "Fused prediction computes the teacher's logits from their factors, which the mean of several has not"
        yield Problem("losses.kernels.prediction", what, rule, "Set losses.kernels.prediction: auto or reference")


def features_are_of_one(recipe: Recipe) -> Iterator[Problem]:
    """Hidden states have no mean: the teachers' spaces are not the same."""
    named = [number for number, one in enumerate(recipe.teachers) if one.features]
    for number in named[1:]:
        what = f"is true, but so is teachers.{named[0]}.features"
        yield Problem(f"teachers.{number}.features", what, "Features are of one teacher", "Leave it at one of them")


SEVERAL_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    the_first_of_several_is_the_teacher,
    several_teachers_have_no_factors,
    features_are_of_one,
)
