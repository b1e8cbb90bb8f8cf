"""Rules about a cached teacher (teacher.source: cache)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from distill_engine.recipe.problem import Problem
from distill_engine.recipe.schema import Recipe


def holds_head(recipe: Recipe) -> bool | None:
    """Whether the recipe's cache keeps logits as their factors (`distill cache --k all`), which fused prediction needs;
    None where no cache is there yet."""
    form = _form(recipe)
    return None if form is None else bool(form[1])


def kept_tokens(recipe: Recipe) -> int | None:
    """Of how many tokens of each position the recipe's cache keeps logits; None: of all, or no cache is there yet."""
    form = _form(recipe)
    return None if form is None else form[0]


def against_some_tokens(recipe: Recipe, kept: str) -> str:
    """Why the logits of some tokens do not do, if they do not; `kept`: what says that these alone are kept.

    Probabilities add up, and so may be compared with one token for the rest; logits do not."""
    losses = recipe.losses
    asking = any(term.distils and term.operand == "logits" for term in losses.weights.terms)
    if not asking or losses.measure.of != "logits":
        return ""
    return (
        f"{kept}, but losses.divergence is {losses.divergence}, which compares every logit. Keep all logits (distill "
        "cache --k all), or set another divergence, such as the default."
    )


def _form(recipe: Recipe) -> tuple[int | None, bool] | None:
    """k and head of teachers.columns.Form."""
    try:
        manifest = json.loads((Path(recipe.teacher.cache or "") / "manifest.json").read_text(encoding="utf-8"))
        return manifest["form"]["k"], manifest["form"]["head"]
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
    folder, k = recipe.teacher.cache, kept_tokens(recipe)
    if recipe.losses.kernels.prediction == "fused" and holds_head(recipe) is False:
        what = f"is fused, but {folder} keeps {f'the {k} most probable tokens' if k else 'logits themselves'}"
        fix = "Set losses.kernels.prediction: auto or reference"
        fix += ", or make a cache of all logits (distill cache --k all)" if k else ""
        rule = "Fused prediction computes the teacher's logits from their factors"
        yield Problem("losses.kernels.prediction", what, rule, fix)
    if k is not None and (
        reason := against_some_tokens(recipe, f"is {folder}, which keeps {k} tokens of each position")
    ):
        yield Problem("teacher.cache", reason)


CACHE_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    a_cached_teacher_has_a_folder,
    cached_outputs_are_of_the_data,
)
