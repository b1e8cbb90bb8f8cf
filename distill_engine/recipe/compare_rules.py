"""Rules about what of teacher and student is compared, head by head and layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from distill_engine.families.shape import Shape, Sizes
from distill_engine.losses.config import LayerMap
from distill_engine.recipe.problem import Problem
from distill_engine.recipe.schema import Recipe
from distill_engine.values import Stack

_NO_LAYERS: Mapping[Stack, tuple[int, ...]] = dict.fromkeys(Stack, ())  # which features, not how many


def heads_agree(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
    """Attention terms compare head by head."""
    heads = recipe.student.heads
    if heads is not None and not recipe.features_of:  # see features_compare
        yield from _heads_differ(recipe, dict.fromkeys(Stack, heads), teacher)


def _heads_differ(recipe: Recipe, heads: Mapping[Stack, int], teacher: Shape) -> Iterator[Problem]:
    stacks = dict[str, list[Stack]]()
    for term in recipe.losses.weights.terms:
        if term.operand == "scores":
            kinds = term.needs(_NO_LAYERS).attention
            stacks.setdefault(term.weight, []).extend(kind.query_stack for kind in kinds)
    for name, asked in stacks.items():
        wrong = [stack for stack in asked if heads[stack] != teacher.heads_of(stack)]
        if wrong:
            has, own, weight = teacher.heads_of(wrong[0]), heads[wrong[0]], recipe.losses.weights[name]
            yield Problem(
                f"losses.weights.{name}",
                f"is {weight:g}, but the teacher has {has} heads and the student {own} (student.heads)",
                "Attention matrices can only be compared head by head",
                f"Set student.heads: {has}, or losses.weights.{name}: 0",
            )


def student_is_not_deeper(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
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


def explicit_maps_point_into_the_teacher(recipe: Recipe, teacher: Shape) -> Iterator[Problem]:
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
    if recipe.student.from_teacher:
        maps[f"student.{stack}_init_map"] = getattr(recipe.student, f"{stack}_init_map")
    asked = recipe.losses.weights.request(_NO_LAYERS)
    if not recipe.features_of and Stack(stack) in {*asked.hidden, *(kind.query_stack for kind in asked.attention)}:
        maps[f"losses.{stack}_layer_map"] = getattr(recipe.losses, f"{stack}_layer_map")
    return maps


def map_problems(path: str, layer_map: LayerMap, depth: int | None) -> Iterator[Problem]:
    """What is wrong with one map for a student stack of `depth` layers (None: not known yet)."""
    if isinstance(layer_map, str):
        return
    negative = [layer for layer in layer_map if layer < 0]
    if negative:
        yield Problem(path, f"is {layer_map}, with the entry {negative[0]}", "Teacher layers are counted from 0")
    if depth is not None and len(layer_map) != depth:
        what = f"has {len(layer_map)} entries, but the student has {depth} layers there"
        yield Problem(path, what, "A map names one teacher layer for each student layer")


def features_compare(recipe: Recipe, first: Shape, compared: Shape) -> Iterator[Problem]:
    """What the rules above say of another teacher than the first, whose features alone are compared."""
    part = recipe.student
    own = first.resized(Sizes(part.encoder_layers, part.decoder_layers, heads=part.heads))
    layers = {"encoder_layers": own.encoder_layers, "decoder_layers": own.decoder_layers}
    student = part.model_copy(update={"init": "random", **layers})
    alone = recipe.model_copy(update={"student": student, "teachers": []})
    yield from _heads_differ(alone, {stack: own.heads_of(stack) for stack in Stack}, compared)
    yield from student_is_not_deeper(alone, compared)
    yield from explicit_maps_point_into_the_teacher(alone, compared)
    for stack in Stack:
        for path, layer_map in _maps_in_use(alone, stack.value).items():
            yield from map_problems(path, layer_map, own.depth(stack))
