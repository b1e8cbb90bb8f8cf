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


def several_teachers_are_live(recipe: Recipe) -> Iterator[Problem]:
    """A cache is of one teacher, and the mean of several has no factors."""
    if len(recipe.teachers) < 2:
        return
    if recipe.teacher.source == "cache":
        what = f"is cache, but there are {len(recipe.teachers)} teachers (teachers)"
        yield Problem("teacher.source", what, "A cache is of one teacher", "Set teacher.source: live")
    if recipe.losses.kernels.prediction == "fused":
        what = f"is fused, but there are {len(recipe.teachers)} teachers (teachers)"
        rule = "Fused prediction computes the teacher's logits from their factors, which the mean of several has not"
        yield Problem("losses.kernels.prediction", what, rule, "Set losses.kernels.prediction: auto or reference")


SEVERAL_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    the_first_of_several_is_the_teacher,
    several_teachers_are_live,
)
