"""Rules about a cached teacher (teacher.source: cache), and about several (`teachers`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from distill_engine.recipe.problem import Problem, shown
from distill_engine.recipe.schema import Recipe


def holds_head(recipe: Recipe) -> bool | None:
    """Whether the recipe's cache keeps logits as their factors (`distill cache --k all`), which fused prediction needs;
    None where no cache is there yet."""
    try:
        manifest = json.loads((Path(recipe.teacher.cache or "") / "manifest.json").read_text(encoding="utf-8"))
        return bool(manifest["form"]["head"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def a_cached_teacher_has_a_folder(recipe: Recipe) -> Iterator[Problem]:
    """And a folder is there for a cached teacher."""
    teacher = recipe.teacher
    if teacher.source == "cache" and teacher.path is not None and teacher.cache is None:
        fix = "Set teacher.cache: DIR, which `distill cache RECIPE --out DIR` writes (with teacher.source: live)"
        yield Problem("teacher.source", "is cache, but teacher.cache is null", "It is read from a folder", fix)
    if teacher.cache is not None and teacher.source == "live":
        what = f"is {teacher.cache!r}, but teacher.source is live"
        yield Problem("teacher.cache", what, fix="Set teacher.source: cache, or remove teacher.cache")


def cached_outputs_are_of_the_data(recipe: Recipe) -> Iterator[Problem]:
    """Of any other text a cache holds nothing, and of some tokens' logits no factors."""
    if recipe.teacher.source != "cache":
        return
    if recipe.rollout.source != "gold":
        what = f"is {recipe.rollout.source}, but teacher.source is cache"
        fix = "Set rollout.source: gold, or teacher.source: live"
        yield Problem("rollout.source", what, "A cache holds the teacher's outputs for the data's own labels", fix)
    if recipe.losses.kernels.prediction == "fused" and holds_head(recipe) is False:
        what = f"is fused, but {recipe.teacher.cache} keeps the most probable tokens"
        fix = "Set losses.kernels.prediction: auto or reference, or make a cache of all logits (distill cache --k all)"
        rule = "Fused prediction computes the teacher's logits from their factors"
        yield Problem("losses.kernels.prediction", what, rule, fix)


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


CACHE_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    a_cached_teacher_has_a_folder,
    cached_outputs_are_of_the_data,
    the_first_of_several_is_the_teacher,
    several_teachers_are_live,
)
