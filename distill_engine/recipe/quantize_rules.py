"""Rules about last steps in which a student is trained for int8, and what the student of a step is to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distill_engine.recipe.problem import Problem
from distill_engine.recipe.schema import Recipe


def quantized_from(recipe: Recipe) -> int | None:
    """The first step, counted from 0, whose passes are int8's; None: no step's. Of a sound recipe."""
    if recipe.student.quantize is None or recipe.stop.max_steps is None:
        return None
    last = recipe.stop.max_steps
    return last - (recipe.student.quantize_steps or max(1, last // 10))


def last_steps_are_known(recipe: Recipe) -> Iterator[Problem]:
    """Which steps are the last, long before they come."""
    part, stop = recipe.student, recipe.stop
    if part.quantize is None:
        if part.quantize_steps is not None:
            what = f"is {part.quantize_steps}, but student.quantize is null"
            fix = "Set student.quantize: int8, or remove it"
            yield Problem("student.quantize_steps", what, "It says how many steps are int8's", fix)
        return
    if stop.max_steps is None:
        what, rule = "is null, but student.quantize is int8", "The last steps are counted from there"
        yield Problem("stop.max_steps", what, rule, "Set it, or remove student.quantize")
    elif part.quantize_steps is not None and part.quantize_steps > stop.max_steps:
        what = f"is {part.quantize_steps}, but the run has {stop.max_steps} steps (stop.max_steps)"
        yield Problem("student.quantize_steps", what, "They are the last of the run", "Set a smaller number")
    for key in ("max_epochs", "max_seconds"):
        limit = getattr(stop, key)
        if limit is not None:
            what, rule = f"is {limit:g}, but student.quantize is int8", "It could end the run before its int8 steps"
            yield Problem(f"stop.{key}", what, rule, "Remove it: stop.max_steps ends the run")


def a_shared_encoder_stays_the_teachers(recipe: Recipe) -> Iterator[Problem]:
    """Rounding the student's would round the teacher's."""
    if recipe.student.quantize is not None and recipe.student.share_encoder:
        yield Problem(
            "student.share_encoder",
            "is true, but student.quantize is int8",
            "The teacher would read an encoder in int8, too",
            "Set student.freeze_encoder: true instead, which trains the same student",
        )


QUANTIZE_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    last_steps_are_known,
    a_shared_encoder_stays_the_teachers,
)


def int8_note(recipe: Recipe, step: int) -> str:
    """What the student of a step is to int8, where the recipe asks for quantisation-aware steps; else nothing."""
    begins = quantized_from(recipe)
    if begins is None:
        return ""
    if step <= begins:
        return f"It is not yet trained for int8, which begins after step {begins}; its numbers are not int8's."
    return f"It is trained for int8 since step {begins}, and its numbers are int8's; the weights are floating-point."
