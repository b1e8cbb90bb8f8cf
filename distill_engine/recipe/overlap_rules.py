"""What a teacher that runs ahead of the student (teacher.overlap) cannot go with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from distill_engine.recipe.placement import placement_of
from distill_engine.recipe.problem import Problem, RecipeError, shown
from distill_engine.recipe.schema import Recipe

_WHY_WHOLE = "Gathers of shards would come between the student's reductions"


def a_teacher_ahead_is_one_whole_model(recipe: Recipe) -> Iterator[Problem]:
    """In memory on every rank, asked micro-batch by micro-batch for text that the student has no part in."""
    teacher, rollout, student = recipe.teacher, recipe.rollout, recipe.student
    if not teacher.overlap or teacher.path is None:
        return
    fine = {
        "teacher.source": (teacher.source, ("live",), "A cache is read ahead anyway"),
        "teacher.placement": (teacher.placement, ("auto", "replica"), _WHY_WHOLE),
        "teacher.window": (teacher.window, (False,), "In a window no micro-batch has a pass of its own"),
        "rollout.source": (rollout.source, ("gold",), "The student's next text is not there yet"),
        "student.share_encoder": (student.share_encoder, (False,), "The encoder runs when a step begins"),
    }  # fmt: skip
    for key, (value, allowed, rule) in fine.items():
        if value not in allowed:
            wrong, right = (shown(one).strip("'") for one in (value, allowed[-1]))
            fix = f"Set {key}: {right}, or teacher.overlap: false"
            yield Problem(key, f"is {wrong}, but teacher.overlap is true", rule, fix)
    if recipe.teachers:
        fix = "Name one teacher (teacher.path), or set teacher.overlap: false"
        yield Problem("teachers", "are several, but teacher.overlap is true", "One model runs ahead", fix)


def require_replica(recipe: Recipe, world_size: int, teacher_ds: Mapping[str, Any]) -> None:
    """Raises RecipeError where the placement that is chosen for so many ranks (`auto`) is of shards."""
    placement, _ = placement_of(recipe, world_size, teacher_ds)
    if recipe.teacher.overlap and placement != "replica":
        what = f"is auto, which is {placement} here ({world_size} ranks), but teacher.overlap is true"
        fix = "Set teacher.placement: replica, or teacher.overlap: false"
        raise RecipeError(recipe.name, [Problem("teacher.placement", what, _WHY_WHOLE, fix)])


OVERLAP_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (a_teacher_ahead_is_one_whole_model,)
