"""Rules about an encoder that is not trained, or is the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distill_engine.families.shape import Shape
from distill_engine.losses.config import DecoderWeights
from distill_engine.recipe.problem import Problem
from distill_engine.recipe.schema import Recipe
from distill_engine.values import Stack


def _switch(recipe: Recipe) -> str:
    return "share_encoder" if recipe.student.share_encoder else "freeze_encoder"


def a_frozen_encoder_has_no_terms(recipe: Recipe) -> Iterator[Problem]:
    """Weights that would be of the encoder alone."""
    weights = recipe.losses.weights
    for name in weights.idle if isinstance(weights, DecoderWeights) else ():
        yield Problem(
            f"losses.weights.{name}",
            f"is {weights[name]:g}, but student.{_switch(recipe)} is true",
            "It weighs what looks at the encoder alone, and a frozen encoder learns nothing",
            f"Set losses.weights.{name}: 0",
        )


def a_frozen_encoder_begins_as_something(recipe: Recipe) -> Iterator[Problem]:
    """Random numbers that stay are of no use."""
    if recipe.student.encoder_is_frozen and recipe.student.init != "teacher_layers":
        what = f"is true, but student.init is {recipe.student.init}"
        rule = "An encoder that is not trained is copied from the teacher's"
        fix = f"Set student.init: teacher_layers, or student.{_switch(recipe)}: false"
        yield Problem(f"student.{_switch(recipe)}", what, rule, fix)


def a_shared_encoder_has_a_teacher_in_memory(recipe: Recipe) -> Iterator[Problem]:
    """Who would share it else?"""
    student, teacher = recipe.student, recipe.teacher
    if not student.share_encoder:
        return
    fix = "Set student.freeze_encoder: true instead, which trains the same student"
    if teacher.path is None:
        yield Problem("student.share_encoder", "is true, but teacher.path is null", "It is shared with a teacher", fix)
    elif recipe.teachers:
        what = "is true, but there are several teachers"
        yield Problem("student.share_encoder", what, "Each of them has an encoder of its own", fix)
    elif teacher.source != "live":
        what = f"is true, but teacher.source is {teacher.source}"
        yield Problem("student.share_encoder", what, "It is shared with a teacher that is in memory", fix)
    if not student.copy_final_norms:
        what = "is false, but student.share_encoder is true"
        yield Problem("student.copy_final_norms", what, "The shared encoder is the teacher's", "Remove it")


def a_shared_encoder_is_the_teachers(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """All of its layers, in order."""
    student = recipe.student
    if not student.share_encoder:
        return
    depth, layer_map = teacher.depth(Stack.ENCODER), student.encoder_init_map
    if student.encoder_layers not in (None, depth):
        what = f"is {student.encoder_layers}, but the teacher's encoder has {depth} layers"
        yield Problem("student.encoder_layers", what, "student.share_encoder: true takes all of them", "Remove it")
    if not isinstance(layer_map, str) and layer_map != list(range(depth)):
        what = f"is {layer_map}, but student.share_encoder is true"
        yield Problem("student.encoder_init_map", what, "The shared encoder is the teacher's", "Remove it")
    if teacher.window is None and student.positions not in (None, teacher.positions):
        what = f"is {student.positions}, but student.share_encoder is true"
        yield Problem("student.positions", what, "The shared encoder has the teacher's position table", "Remove it")


def a_frozen_table_has_no_terms(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """Tokens that both stacks read are rows of one table, in most families, and that is frozen with the encoder."""
    if not recipe.student.encoder_is_frozen or teacher.window is not None:
        return
    for term in recipe.losses.weights.terms:
        if term.needs(dict.fromkeys(Stack, ())).embeddings:
            yield Problem(
                f"losses.weights.{term.weight}",
                f"is {recipe.losses.weights[term.weight]:g}, but student.{_switch(recipe)} is true",
                "The table of tokens that the encoder reads is frozen with it",
                f"Set losses.weights.{term.weight}: 0",
            )


ENCODER_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    a_frozen_encoder_has_no_terms,
    a_frozen_encoder_begins_as_something,
    a_shared_encoder_has_a_teacher_in_memory,
)
