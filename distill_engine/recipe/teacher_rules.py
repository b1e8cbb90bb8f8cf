"""Rules that need the teacher's config.json (as a plain dict) or the tokenizer's numbers, but no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from distill_engine.losses.config import LayerMap
from distill_engine.recipe.problem import Problem, shown
from distill_engine.recipe.schema import Recipe
from distill_engine.values import Stack

FAMILIES = ("blenderbot", "bart")

# Vocabularies are padded so that their size suits the hardware; a larger gap is another vocabulary.
MAX_UNUSED_ROWS = 256

_NO_LAYERS: Mapping[Stack, tuple[int, ...]] = dict.fromkeys(Stack, ())  # which features, not how many

SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class TeacherShape:
    """The numbers of a Blenderbot or BART config.json that rules compare with; names are the file's."""

    model_type: str
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    max_position_embeddings: int

    def depth(self, stack: str) -> int:
        """Layers of `encoder` or `decoder`."""
        return self.encoder_layers if stack == "encoder" else self.decoder_layers

    def heads(self, stack: str) -> int:
        """Attention heads of `encoder` or `decoder`."""
        return self.encoder_attention_heads if stack == "encoder" else self.decoder_attention_heads


def check_against_teacher(recipe: Recipe, teacher_config: Mapping[str, Any]) -> list[Problem]:
    """All problems between a recipe that has a teacher and that teacher's config.json.

    teacher_config has the keys of Hugging Face's Blenderbot and BART configs.
    """
    problems = _unreadable(recipe, teacher_config)
    if problems:
        return problems
    teacher = TeacherShape(**{field.name: teacher_config[field.name] for field in fields(TeacherShape)})
    return [problem for rule in TEACHER_RULES for problem in rule(recipe, teacher)]


def _unreadable(recipe: Recipe, config: Mapping[str, Any]) -> list[Problem]:
    """Why this config is none that the rules can be applied to."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        what = f"is {recipe.teacher.path!r}, whose config.json has model_type {shown(kind)}"
        return [Problem("teacher.path", what, f"Teachers can be: {', '.join(FAMILIES)}")]
    needed = [field.name for field in fields(TeacherShape)][1:]
    wrong = [key for key in needed if not isinstance(config.get(key), int) or config[key] <= 0]
    rule = f"The config.json of a {kind} model has a positive whole number there"
    return [Problem("teacher.path", f"has a config.json with {key} {shown(config.get(key))}", rule) for key in wrong]


def family_is_the_teachers(recipe: Recipe, teacher: TeacherShape) -> Iterator[Problem]:
    """Layer by layer comparison needs layers of one kind."""
    family = recipe.student.family
    if family is not None and family != teacher.model_type:
        yield Problem(
            "student.family",
            f"is {family}, but the teacher is a {teacher.model_type} model",
            "A student has its teacher's architecture and vocabulary",
            f"Set student.family: {teacher.model_type}, or remove the key",
        )


def heads_agree(recipe: Recipe, teacher: TeacherShape) -> Iterator[Problem]:
    """Attention terms compare head by head."""
    heads, stacks = recipe.student.heads, dict[str, list[Stack]]()
    for term in recipe.losses.weights.terms:
        if term.operand == "scores":
            kinds = term.needs(_NO_LAYERS).attention
            stacks.setdefault(term.weight, []).extend(kind.query_stack for kind in kinds)
    for name, asked in stacks.items():
        wrong = [stack.value for stack in asked if heads is not None and heads != teacher.heads(stack.value)]
        if wrong:
            has, weight = teacher.heads(wrong[0]), recipe.losses.weights[name]
            yield Problem(
                f"losses.weights.{name}",
                f"is {weight:g}, but the teacher has {has} heads and the student {heads} (student.heads)",
                "Attention matrices can only be compared head by head",
                f"Set student.heads: {has}, or losses.weights.{name}: 0",
            )


def width_divides(recipe: Recipe, teacher: TeacherShape) -> Iterator[Problem]:
    """Heads divide the width, where one of the two is the teacher's."""
    student = recipe.student
    if student.width is not None and student.heads is not None:
        return  # rules.width_divides_into_heads has looked at it
    width = student.width or teacher.d_model
    for stack in ("encoder", "decoder"):
        heads = student.heads or teacher.heads(stack)
        if width % heads:
            given = "student.width" if student.width is not None else "student.heads"
            yield Problem(
                given,
                f"makes a {stack} of width {width} with {heads} heads; what is not given is the teacher's",
                "Heads divide the width",
                "Set student.width and student.heads",
            )
            return


def student_is_not_deeper(recipe: Recipe, teacher: TeacherShape) -> Iterator[Problem]:
    """A named layer map picks different teacher layers; a deeper student has too few to pick from."""
    for stack in ("encoder", "decoder"):
        depth = getattr(recipe.student, f"{stack}_layers")
        maps = [path for path, layer_map in _maps_in_use(recipe, stack).items() if isinstance(layer_map, str)]
        if depth is not None and depth > teacher.depth(stack) and maps:
            yield Problem(
                f"student.{stack}_layers",
                f"is {depth}, but the teacher's {stack} has {teacher.depth(stack)} layers",
                "A student is at most as deep as its teacher",
                f"Set student.{stack}_layers: {teacher.depth(stack)} or less, or list teacher layers in "
                f"{' and '.join(maps)}",
            )


def explicit_maps_point_into_the_teacher(recipe: Recipe, teacher: TeacherShape) -> Iterator[Problem]:
    """Every entry of an explicit map is a layer that the teacher has."""
    for stack in ("encoder", "decoder"):
        depth = teacher.depth(stack)
        for path, layer_map in _maps_in_use(recipe, stack).items():
            if isinstance(layer_map, str):
                continue
            beyond = [layer for layer in layer_map if layer >= depth]
            if beyond:
                rule = f"The teacher's {stack} has {depth} layers, numbered 0 to {depth - 1}"
                yield Problem(path, f"is {layer_map}, with the entry {beyond[0]}", rule)
            if getattr(recipe.student, f"{stack}_layers") is None and len(layer_map) != depth:
                what = f"has {len(layer_map)} entries, but student.{stack}_layers is null, so the student has {depth}"
                yield Problem(path, what, fix=f"Set student.{stack}_layers: {len(layer_map)}")


def _maps_in_use(recipe: Recipe, stack: str) -> dict[str, LayerMap]:
    """Path -> map, for the maps of this stack that decide something."""
    maps = {}
    if recipe.student.init == "teacher_layers":
        maps[f"student.{stack}_init_map"] = getattr(recipe.student, f"{stack}_init_map")
    asked = recipe.losses.weights.request(_NO_LAYERS)
    if Stack(stack) in {*asked.hidden, *(kind.query_stack for kind in asked.attention)}:
        maps[f"losses.{stack}_layer_map"] = getattr(recipe.losses, f"{stack}_layer_map")
    return maps


def copied_layers_have_equal_widths(recipe: Recipe, teacher: TeacherShape) -> Iterator[Problem]:
    """A copied tensor has the shape it is copied to, and its heads keep their meaning."""
    sizes = {
        "width": (teacher.d_model,),
        "ffn_width": (teacher.encoder_ffn_dim, teacher.decoder_ffn_dim),
        "heads": (teacher.encoder_attention_heads, teacher.decoder_attention_heads),
    }
    for key, own in sizes.items():
        asked = getattr(recipe.student, key)
        wrong = [size for size in own if asked is not None and asked != size]
        if recipe.student.init == "teacher_layers" and wrong:
            yield Problem(
                f"student.{key}",
                f"is {asked}, but the teacher has {wrong[0]}, and student.init is teacher_layers",
                "Copied layers keep the teacher's sizes",
                f"Remove student.{key}, or set student.init: random for a narrower student",
            )


def tokens_fit_the_position_table(recipe: Recipe, teacher: TeacherShape) -> Iterator[Problem]:
    """The teacher reads the same tokens as the student."""
    # BART's decoder reads one token more than it predicts: it starts with </s> <s>.
    extra = {"context_tokens": 0, "label_tokens": 1 if teacher.model_type == "bart" else 0}
    table = teacher.max_position_embeddings
    for key, more in extra.items():
        tokens = getattr(recipe.data, key)
        if tokens + more > table:
            yield Problem(
                f"data.{key}",
                f"is {tokens}, but the teacher's position table has {table} rows",
                f"A {teacher.model_type} model needs {tokens + more} for them" if more else "Each token needs one",
                f"Set data.{key}: {table - more} or less",
            )


def positions_can_be_copied(recipe: Recipe, teacher: TeacherShape) -> Iterator[Problem]:
    """A copied position table cannot grow."""
    positions, table = recipe.student.positions, teacher.max_position_embeddings
    if recipe.student.init == "teacher_layers" and positions is not None and positions > table:
        what = f"is {positions}, but the teacher's position table has {table} rows"
        rule = "student.init: teacher_layers copies the table"
        yield Problem("student.positions", what, rule, f"Set student.positions: {table} or less")


def check_tokenizer(
    vocab_size: int, special_ids: Mapping[str, int | None], teacher_config: Mapping[str, Any]
) -> list[Problem]:
    """All mismatches between a tokenizer and the teacher's embeddings.

    vocab_size   largest id that text can become, plus 1 (a `<mask>` that text never becomes does not count)
    special_ids  the tokenizer's pad_token_id, bos_token_id, eos_token_id
    """
    return [*_vocabulary(vocab_size, teacher_config), *_special_tokens(special_ids, teacher_config)]


def _vocabulary(vocab_size: int, config: Mapping[str, Any]) -> Iterator[Problem]:
    rows = config.get("vocab_size")
    fix = "Use the tokenizer that the teacher was trained with (data.tokenizer: null takes it from teacher.path)"
    if not isinstance(rows, int):
        yield Problem("teacher.path", f"has a config.json with vocab_size {shown(rows)}", "It is a whole number")
    elif vocab_size > rows:
        what = f"gives ids up to {vocab_size - 1}, but the teacher has {rows} embedding rows"
        yield Problem("data.tokenizer", what, "Every id has an embedding row", fix)
    elif vocab_size < rows - MAX_UNUSED_ROWS:
        what = f"knows {vocab_size} ids, but the teacher has {rows} embedding rows"
        yield Problem("data.tokenizer", what, "Student and teacher share one vocabulary", fix)


def _special_tokens(special_ids: Mapping[str, int | None], config: Mapping[str, Any]) -> Iterator[Problem]:
    for key in SPECIAL_TOKENS:
        own, teachers = special_ids.get(key), config.get(key)
        if teachers is not None and own != teachers:
            what = f"has {key} {shown(own)}, but the teacher's config.json says {shown(teachers)}"
            fix = "Use the teacher's tokenizer, or correct the special tokens of this one"
            yield Problem("data.tokenizer", what, "Student and teacher share their special tokens", fix)


TeacherRule = Callable[[Recipe, TeacherShape], Iterator[Problem]]

TEACHER_RULES: tuple[TeacherRule, ...] = (
    family_is_the_teachers,
    heads_agree,
    width_divides,
    student_is_not_deeper,
    explicit_maps_point_into_the_teacher,
    copied_layers_have_equal_widths,
    positions_can_be_copied,
    tokens_fit_the_position_table,
)
