"""Rules that need the teacher's config.json (as a plain dict) or the tokenizer's numbers, but no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from distill_engine.families.lookup import family_named, family_of
from distill_engine.families.shape import Shape, Sizes
from distill_engine.recipe.batch_rules import budget_problems
from distill_engine.recipe.compare_rules import explicit_maps_point_into_the_teacher, heads_agree, student_is_not_deeper
from distill_engine.recipe.encoder_rules import a_frozen_table_has_no_terms, a_shared_encoder_is_the_teachers
from distill_engine.recipe.narrow_rules import a_narrow_student_fits_into_its_teacher
from distill_engine.recipe.problem import Problem, shown
from distill_engine.recipe.schema import Recipe
from distill_engine.registry import names

# Vocabularies are padded so that their size suits the hardware; a larger gap is another vocabulary.
MAX_UNUSED_ROWS = 256


def check_against_teacher(recipe: Recipe, teacher_config: Mapping[str, Any]) -> list[Problem]:
    """All problems between a recipe that has a teacher and that teacher's config.json.

    teacher_config has the keys of its family's config.json.
    """
    problems = _unreadable(recipe, teacher_config)
    if problems:
        return problems
    teacher = family_of(teacher_config).shape(teacher_config)
    return [problem for rule in TEACHER_RULES for problem in rule(recipe, teacher)]


def _unreadable(recipe: Recipe, config: Mapping[str, Any]) -> list[Problem]:
    """Why this config is none that the rules can be applied to."""
    kind = config.get("model_type")
    if kind not in names("families"):
        what = f"is {recipe.teacher.path!r}, whose config.json has model_type {shown(kind)}"
        return [Problem("teacher.path", what, f"Teachers can be: {', '.join(names('families'))}")]
    wrong = family_named(str(kind)).missing(config)
    rule = f"The config.json of a {kind} model has a positive whole number there"
    return [Problem("teacher.path", f"has a config.json with {key} {shown(config.get(key))}", rule) for key in wrong]


def family_is_the_teachers(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """Layer by layer comparison needs layers of one kind."""
    family = recipe.student.family
    if family is not None and family != teacher.family:
        yield Problem(
            "student.family",
            f"is {family}, but the teacher is a {teacher.family} model",
            "A student has its teacher's architecture and vocabulary",
            f"Set student.family: {teacher.family}, or remove the key",
        )


def vocabulary_is_of_texts(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """What generates from sound counts on the numbers of its time marks and tasks."""
    if recipe.student.vocabulary == "trimmed" and family_named(teacher.family).inputs != "tokens":
        yield Problem(
            "student.vocabulary",
            f"is trimmed, but {teacher.family} models read no texts",
            "Vocabularies of text models can be trimmed",
            "Remove the key",
        )


def width_divides(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """Heads divide the width, where one of the two is the teacher's and heads have no size of their own."""
    student = recipe.student
    if teacher.head_size is not None:
        return
    if student.width is not None and student.heads is not None:
        return  # rules.width_divides_into_heads has looked at it
    width = student.width or teacher.width
    for stack in ("encoder", "decoder"):
        heads = student.heads or teacher.heads_of(stack)
        if width % heads:
            given = "student.width" if student.width is not None else "student.heads"
            yield Problem(
                given,
                f"makes a {stack} of width {width} with {heads} heads; what is not given is the teacher's",
                "Heads divide the width",
                "Set student.width and student.heads",
            )
            return


def copied_layers_have_equal_widths(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """A copied tensor has the shape it is copied to, and its heads keep their meaning."""
    sizes = {
        "width": (teacher.width,),
        "ffn_width": (teacher.encoder_ffn, teacher.decoder_ffn),
        "heads": (teacher.encoder_heads, teacher.decoder_heads),
    }
    for key, own in sizes.items():
        asked = getattr(recipe.student, key)
        wrong = [size for size in own if asked is not None and asked != size]
        if recipe.student.init == "teacher_layers" and wrong:
            yield Problem(
                f"student.{key}",
                f"is {asked}, but the teacher has {wrong[0]}, and student.init is teacher_layers",
                "Copied layers keep the teacher's sizes",
                f"Remove student.{key}, or set student.init: teacher_width for a narrower student (random for any)",
            )


def tokens_fit_the_position_table(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """The teacher reads the same tokens as the student."""
    extra = {"context_tokens": 0, "label_tokens": family_named(teacher.family).decoder_skips}
    table = teacher.positions
    if table is None:
        return
    for key, more in extra.items():
        if key == "context_tokens" and teacher.window is not None:  # it hears, and reads no context
            continue
        tokens = getattr(recipe.data, key)
        if tokens + more > table:
            yield Problem(
                f"data.{key}",
                f"is {tokens}, but the teacher's position table has {table} rows",
                f"A {teacher.family} model needs {tokens + more} for them" if more else "Each token needs one",
                f"Set data.{key}: {table - more} or less",
            )


def positions_can_be_copied(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """A copied position table cannot grow."""
    positions, table = recipe.student.positions, teacher.positions
    if table is None and positions is not None:
        what = f"is {positions}, but {teacher.family} models have no position table"
        yield Problem("student.positions", what, "They take texts of any length", "Remove student.positions")
        return
    if table is None:
        return
    if recipe.student.from_teacher and positions is not None and positions > table:
        what = f"is {positions}, but the teacher's position table has {table} rows"
        rule = f"student.init: {recipe.student.init} copies the table"
        yield Problem("student.positions", what, rule, f"Set student.positions: {table} or less")


def check_tokenizer(
    vocab_size: int, special_ids: Mapping[str, int | None], rows: int, teacher_config: Mapping[str, Any]
) -> list[Problem]:
    """All mismatches between a tokenizer and the teacher's embeddings.

    vocab_size   largest id that text can become, plus 1 (a `<mask>` that text never becomes does not count)
    special_ids  the tokenizer's pad_token_id, eos_token_id and, where the family uses it, bos_token_id
    rows         of the teacher's embedding
    """
    return [*_vocabulary(vocab_size, rows), *_special_tokens(special_ids, teacher_config)]


def id_without_row(table: str, largest: int, rows: int) -> Problem:
    """What is wrong with tokenised data whose largest id has no row in the teacher's table of this name."""
    return Problem(
        "data.tokenizer",
        f"gives the id {largest}, but the teacher has {rows} {table} rows",
        "Every id has an embedding row",
        "Use the tokenizer that the teacher was trained with",
    )


def _vocabulary(vocab_size: int, rows: int) -> Iterator[Problem]:
    fix = "Use the tokenizer that the teacher was trained with (data.tokenizer: null takes it from teacher.path)"
    if vocab_size > rows:
        what = f"gives ids up to {vocab_size - 1}, but the teacher has {rows} embedding rows"
        yield Problem("data.tokenizer", what, "Every id has an embedding row", fix)
    elif vocab_size < rows - MAX_UNUSED_ROWS:
        what = f"knows {vocab_size} ids, but the teacher has {rows} embedding rows"
        yield Problem("data.tokenizer", what, "Student and teacher share one vocabulary", fix)


def _special_tokens(special_ids: Mapping[str, int | None], config: Mapping[str, Any]) -> Iterator[Problem]:
    for key, own in special_ids.items():
        teachers = config.get(key)
        if teachers is not None and own != teachers:
            what = f"has {key} {shown(own)}, but the teacher's config.json says {shown(teachers)}"
            fix = "Use the teacher's tokenizer, or correct the special tokens of this one"
            yield Problem("data.tokenizer", what, "Student and teacher share their special tokens", fix)


def the_student_runs(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """transformers can run a model of the student's shape."""
    student = recipe.student
    own = teacher.resized(Sizes(student.encoder_layers, student.decoder_layers))
    reason = family_named(teacher.family).obstacle(own)
    if reason:
        rule = "transformers must be able to generate with the student"
        yield Problem("student.decoder_layers", f"is {own.decoder_layers}, but {reason}", rule)


def token_budget_holds_an_example(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """batch.max_tokens has room for the longest text, or a window of sound, and what the decoder reads and writes."""
    window, skipped = teacher.window, family_named(teacher.family).decoder_skips
    context = recipe.data.context_tokens if window is None else window.positions
    called = "data.context_tokens" if window is None else "a window of sound of"
    yield from budget_problems(recipe, context, skipped, called)


TeacherRule = Callable[[Recipe, Shape], Iterator[Problem]]

TEACHER_RULES: tuple[TeacherRule, ...] = (
    family_is_the_teachers,
    vocabulary_is_of_texts,
    heads_agree,
    width_divides,
    student_is_not_deeper,
    explicit_maps_point_into_the_teacher,
    copied_layers_have_equal_widths,
    a_narrow_student_fits_into_its_teacher,
    positions_can_be_copied,
    tokens_fit_the_position_table,
    token_budget_holds_an_example,
    the_student_runs,
    a_shared_encoder_is_the_teachers,
    a_frozen_table_has_no_terms,
)
