"""Rules about a student that is narrower than the teacher whose layers it begins with (student.init: teacher_width)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distill_engine.families.lookup import family_named
from distill_engine.families.shape import Shape, Sizes
from distill_engine.recipe.problem import Problem
from distill_engine.recipe.schema import Recipe
from distill_engine.student.config import StudentSection
from distill_engine.values import Stack

NARROW = "teacher_width"


def a_narrowed_teacher_is_whole(recipe: Recipe) -> Iterator[Problem]:
    """It is run once, and all of its norms are fitted."""
    student = recipe.student
    default = StudentSection.model_fields["importance_examples"].default
    if not student.narrowed:
        if student.importance_examples != default:
            what = f"is {student.importance_examples}, but student.init is {student.init}"
            rule = "They say what a narrower student keeps of its teacher"
            yield Problem("student.importance_examples", what, rule, f"Set student.init: {NARROW}, or remove the key")
        return
    if recipe.teacher.source == "cache":
        yield Problem(
            "student.init",
            f"is {NARROW}, but teacher.source is cache",
            "What a narrower student keeps is seen inside the teacher, of which a cache holds outputs alone",
            "Set teacher.source: live, or student.init: random",
        )
    if other := recipe.features_of:
        yield Problem(
            f"teachers.{other}.features",
            f"is true, but student.init is {NARROW}",
            "Projections begin as what makes features of the teacher whose layers are kept, the first",
            "Name it first in `teachers`, or set student.init: random",
        )
    if not student.copy_final_norms:
        yield Problem(
            "student.copy_final_norms",
            f"is false, but student.init is {NARROW}",
            "All norms are fitted to the channels that are kept",
            "Remove it",
        )


def a_narrow_student_fits_into_its_teacher(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """Each size is at most the teacher's, and one is smaller."""
    student = recipe.student
    if not student.narrowed:
        return
    if family_named(teacher.family).inputs != "tokens":
        yield Problem(
            "student.init",
            f"is {NARROW}, but {teacher.family} models read no texts",
            "Models of texts can be narrowed",
            "Set student.init: teacher_layers and fewer layers, or random",
        )
        return
    most = {
        "width": teacher.width,
        "ffn_width": min(map(teacher.ffn_of, Stack)),
        "heads": min(map(teacher.heads_of, Stack)),
    }
    sizes = {key: getattr(student, key) for key in most}
    wider = [key for key, size in sizes.items() if size is not None and size > most[key]]
    for key in wider:
        what, rule = f"is {sizes[key]}, but the teacher has {most[key]}", f"student.init: {NARROW} keeps some of them"
        yield Problem(f"student.{key}", what, rule, f"Set student.{key}: {most[key]} or less, or student.init: random")
    if wider:
        return
    own = teacher.resized(Sizes(width=student.width, ffn_width=student.ffn_width, heads=student.heads))
    if own == teacher:
        what, rule = f"is {NARROW}, but no size is smaller than the teacher's", "A narrower student leaves some out"
        fix = "Set student.init: teacher_layers, or a smaller width, ffn_width or heads"
        yield Problem("student.init", what, rule, fix)
    for stack in Stack:
        size, whole = own.head_of(stack), teacher.head_of(stack)
        if size > whole:
            what = f"makes heads of {size} elements, but the teacher's {stack.value} has heads of {whole}"
            heads = -(-own.width // whole)
            fix = f"Set student.heads: {heads} or more, or a smaller student.width"
            yield Problem("student.heads", what, "A head is the teacher's, or a part of it", fix)
            return


NARROW_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (a_narrowed_teacher_is_whole,)
