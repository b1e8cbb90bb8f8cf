"""Rules between the sections of a recipe that need no model: one small function each.

A rule yields a Problem for each thing that is wrong; `check_recipe` runs them all. `teacher_rules` has those
that need the teacher's config.json, `data_rules` those about sources and files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from distill_engine.data.kinds.named import kind_of
from distill_engine.families.lookup import family_named
from distill_engine.losses.config import LayerMap, LossWeights
from distill_engine.recipe.balance_rules import BALANCE_RULES
from distill_engine.recipe.batch_rules import BATCH_RULES, skipped_positions
from distill_engine.recipe.cache_rules import CACHE_RULES
from distill_engine.recipe.compare_rules import map_problems
from distill_engine.recipe.data_rules import DATA_RULES
from distill_engine.recipe.encoder_rules import ENCODER_RULES
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.narrow_rules import NARROW_RULES
from distill_engine.recipe.overlap_rules import OVERLAP_RULES
from distill_engine.recipe.problem import Problem, RecipeError, raise_if_any, shown
from distill_engine.recipe.quantize_rules import QUANTIZE_RULES
from distill_engine.recipe.rollout_rules import ROLLOUT_RULES
from distill_engine.recipe.schema import Recipe
from distill_engine.recipe.several_rules import SEVERAL_RULES
from distill_engine.recipe.teacher_rules import check_against_teacher, check_tokenizer
from distill_engine.recipe.validation_rules import VALIDATION_RULES
from distill_engine.teachers.config import TeacherSection

__all__ = ["Problem", "RecipeError", "check_against_teacher", "check_recipe", "check_tokenizer", "raise_if_any"]

Rule = Callable[[Recipe], Iterator[Problem]]

STUDENT_SIZES = ("encoder_layers", "decoder_layers", "width", "ffn_width", "heads", "positions")


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, if it is sound by itself. Raises RecipeError with every problem at once."""
    recipe = load_recipe(path, overrides)
    raise_if_any(path, check_recipe(recipe))
    return recipe


def check_recipe(recipe: Recipe) -> list[Problem]:
    """All problems between sections, in the order of the rules; an empty list when the recipe is sound."""
    return [problem for rule in RULES for problem in rule(recipe)]


def used_weights(weights: LossWeights, *, distillation_only: bool = True) -> dict[str, float]:
    """Weights above 0; `distillation_only`: of terms that compare with a teacher."""
    return {term.weight: weights[term.weight] for term in weights.terms if term.distils or not distillation_only}


def something_is_learnt(recipe: Recipe) -> Iterator[Problem]:
    """At least one weight is above 0."""
    if not used_weights(recipe.losses.weights, distillation_only=False):
        yield Problem(
            "losses.weights",
            "are all 0",
            "Then nothing is learnt",
            "Set losses.weights.task: 1 to train on the data, or weights of distillation terms above 0",
        )


def teacher_is_used(recipe: Recipe) -> Iterator[Problem]:
    """A teacher is there to be imitated, or to have its layers copied."""
    idle = recipe.teacher.path is not None and not used_weights(recipe.losses.weights)
    if idle and not recipe.student.from_teacher:
        yield Problem(
            "teacher.path",
            f"is {recipe.teacher.path!r}, but all distillation weights (losses.weights) are 0",
            f"With student.init: {recipe.student.init} such a teacher would do nothing",
            "Set teacher.path: null, or give a term a weight, such as losses.weights.prediction: 1",
        )


def weights_have_a_teacher(recipe: Recipe) -> Iterator[Problem]:
    """Distillation terms compare with somebody."""
    used = used_weights(recipe.losses.weights)
    if recipe.teacher.path is None and used:
        terms = ", ".join(f"{name} {value:g}" for name, value in used.items())
        yield Problem(
            "losses.weights",
            f"has distillation terms ({terms}), but teacher.path is null",
            "These terms measure the distance to a teacher",
            "Set teacher.path, or set these weights to 0",
        )


def copied_layers_have_a_teacher(recipe: Recipe) -> Iterator[Problem]:
    """teacher_layers and teacher_width copy from somewhere."""
    if recipe.teacher.path is None and recipe.student.from_teacher:
        yield Problem(
            "student.init",
            f"is {recipe.student.init}, but teacher.path is null",
            "Layers are copied from a teacher",
            "Set teacher.path, or student.init: random",
        )


def teacher_keys_have_a_teacher(recipe: Recipe) -> Iterator[Problem]:
    """A revision, a placement, a window and an overlap are a teacher's."""
    for key, field in TeacherSection.model_fields.items():
        value = getattr(recipe.teacher, key)
        if recipe.teacher.path is None and value != field.default:
            what = f"is {shown(value)}, but teacher.path is null"
            yield Problem(f"teacher.{key}", what, fix=f"Set teacher.path, or remove the {key}")


def trimmed_vocabulary_is_a_teachers(recipe: Recipe) -> Iterator[Problem]:
    """Rows are taken out of a teacher's tables, and options of trimming need trimming."""
    part = recipe.student
    if part.vocabulary == "trimmed" and recipe.teacher.path is None:
        yield Problem(
            "student.vocabulary",
            "is trimmed, but there is no teacher",
            "A vocabulary is trimmed with the teacher's embeddings",
            "Name a smaller tokenizer (data.tokenizer), or a teacher",
        )
    if part.vocabulary == "trimmed" and recipe.teachers:
        yield Problem(
            "student.vocabulary",
            "is trimmed, but there are several teachers",
            "One teacher's tables are trimmed",
            "Leave it out, or name one teacher (teacher.path)",
        )
    if part.vocabulary == "all" and (part.vocabulary_list is not None or part.vocabulary_min_count != 1):
        name = "vocabulary_list" if part.vocabulary_list is not None else "vocabulary_min_count"
        yield Problem(
            f"student.{name}", "is given, but student.vocabulary is all", "It says what a trimmed vocabulary keeps",
            "Set student.vocabulary: trimmed, or remove the key",
        )  # fmt: skip


def student_alone_is_complete(recipe: Recipe) -> Iterator[Problem]:
    """Without a teacher there is nobody to take sizes from."""
    if recipe.teacher.path is not None:
        return
    family = recipe.student.family
    unneeded = "" if family is None or family_named(family).takes_positions else "positions"
    for key in ("family", *STUDENT_SIZES):
        if getattr(recipe.student, key) is None and key != unneeded:
            yield Problem(f"student.{key}", "is missing", "Without a teacher the student's sizes have no default")
    if recipe.data.tokenizer is None:
        rule = "Without a teacher the tokenizer has no default"
        yield Problem("data.tokenizer", "is missing", rule, "Name a tokenizer folder or a Hugging Face name")


def width_divides_into_heads(recipe: Recipe) -> Iterator[Problem]:
    """Every attention head is equally wide."""
    width, heads = recipe.student.width, recipe.student.heads
    if width is not None and heads is not None and width % heads:
        yield Problem(
            "student.width",
            f"is {width}, which {heads} heads (student.heads) do not divide",
            "Every head is width / heads wide",
            f"The nearest width that works is {max(1, round(width / heads)) * heads}",
        )


def layer_maps_fit(recipe: Recipe) -> Iterator[Problem]:
    """An explicit layer map has one teacher layer, counted from 0, for each student layer."""
    for stack in ("encoder", "decoder"):
        depth: int | None = getattr(recipe.student, f"{stack}_layers")
        yield from map_problems(f"student.{stack}_init_map", getattr(recipe.student, f"{stack}_init_map"), depth)
        supervision: LayerMap = getattr(recipe.losses, f"{stack}_layer_map")
        yield from map_problems(f"losses.{stack}_layer_map", supervision, depth)


def positions_are_enough(recipe: Recipe) -> Iterator[Problem]:
    """No token stands beyond the student's position tables."""
    positions = recipe.student.positions
    if positions is None:
        return
    reads = any(kind_of(source).inputs == "tokens" for source in recipe.data.tasks)
    for key in ("context_tokens", "label_tokens") if reads else ("label_tokens",):
        tokens = getattr(recipe.data, key)
        needed = tokens + (skipped_positions(recipe) if key == "label_tokens" else 0)
        if needed > positions:
            yield Problem(
                f"data.{key}",
                f"is {tokens}, but the student has {positions} positions (student.positions)",
                f"It needs {needed} positions",
                f"Set student.positions: {needed}, or a smaller data.{key}",
            )


def schedule_has_an_end(recipe: Recipe) -> Iterator[Problem]:
    """linear and cosine fall towards a known step, which lies behind the warm-up."""
    schedule, limit = recipe.schedule, recipe.stop.max_steps
    end = schedule.total_steps or limit
    if schedule.name not in ("linear", "cosine"):
        return
    if end is None:
        what = f"is {schedule.name}, but schedule.total_steps and stop.max_steps are null"
        yield Problem("schedule.name", what, "It needs to know its last step", "Set one of the two")
    elif schedule.warmup_steps >= end:
        what = f"is {schedule.warmup_steps}, but the schedule ends at step {end}"
        yield Problem("schedule.warmup_steps", what, "Warm-up comes before the end")


def first_step_moves(recipe: Recipe) -> Iterator[Problem]:
    """A warm-up that starts at 0 wastes its first step."""
    if recipe.schedule.warmup_start == 0:
        yield Problem(
            "schedule.warmup_start",
            "is 0",
            "The first step of the warm-up should move the weights",
            "Set a share of the learning rate above 0, such as 1e-4",
        )


def run_stops(recipe: Recipe) -> Iterator[Problem]:
    """Something ends the run: a limit, patience or a goal."""
    stop = recipe.stop
    limits = (stop.max_steps, stop.max_epochs, stop.max_seconds)
    if not any((*limits, recipe.validation.patience, recipe.validation.stop_at is not None)):
        yield Problem(
            "stop",
            "has no limit, and validation.patience and validation.stop_at are null",
            "Such a run never stops",
            "Set stop.max_steps, max_epochs or max_seconds, or validation.patience",
        )


def optimizer_keys_are_used(recipe: Recipe) -> Iterator[Problem]:
    """No key that the chosen optimizer would ignore."""
    optimizer = recipe.optimizer
    if optimizer.momentum and optimizer.name != "sgd":
        what = f"is {optimizer.momentum:g}, but optimizer.name is {optimizer.name}"
        fix = "Set optimizer.momentum: 0 (adam and adamw have betas instead), or optimizer.name: sgd"
        yield Problem("optimizer.momentum", what, "Only sgd has momentum", fix)
    if optimizer.amsgrad and optimizer.name == "sgd":
        fix = "Set optimizer.amsgrad: false, or optimizer.name: adam"
        yield Problem("optimizer.amsgrad", "is true, but optimizer.name is sgd", "Only adam and adamw have it", fix)


RULES: tuple[Rule, ...] = (
    something_is_learnt,
    teacher_is_used,
    weights_have_a_teacher,
    copied_layers_have_a_teacher,
    trimmed_vocabulary_is_a_teachers,
    teacher_keys_have_a_teacher,
    student_alone_is_complete,
    width_divides_into_heads,
    layer_maps_fit,
    positions_are_enough,
    schedule_has_an_end,
    first_step_moves,
    *VALIDATION_RULES,
    run_stops,
    optimizer_keys_are_used,
    *DATA_RULES,
    *BATCH_RULES,
    *BALANCE_RULES,
    *CACHE_RULES,
    *ENCODER_RULES,
    *NARROW_RULES,
    *ROLLOUT_RULES,
    *OVERLAP_RULES,
    *SEVERAL_RULES,
    *QUANTIZE_RULES,
)
