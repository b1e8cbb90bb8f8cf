"""Which recipe is this: its complete text, its digest, and how two recipes differ.

A stopped run may go on with another limit, another logging interval, another patience, other loss kernels, or its
teacher or the teacher's cache elsewhere: that changes when it ends, who hears about it, who computes and where, not
what is computed (a window adds up padded rows in another order, which is rounding, as other kernels are). Everything
else is the mathematics of the run; resuming with other mathematics would be another run under an old name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill_engine.cluster.files import digest_of
from distill_engine.recipe.problem import shown
from distill_engine.recipe.schema import Recipe
from distill_engine.recipe.yaml_text import dump_yaml

# Dotted prefixes that may change between restarts of one run.
CHANGEABLE = (
    "name", "stop", "logging", "checkpoint", "validation.patience", "validation.samples", "losses.kernels",
    "data.cache_dir", "teacher.placement", "teacher.window", "teacher.overlap", "teacher.cache",
    "teacher.allow_noise",
)  # fmt: skip


@dataclass(frozen=True)
class RecipeDifference:
    """How a new recipe differs from an old one; each entry reads `dotted.path: old -> new`.

    mathematics  changes that make it another run: never resume over them
    allowed      changes that a restart may bring
    """

    mathematics: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True when anything differs."""
        return bool(self.mathematics or self.allowed)


def resolved_yaml(recipe: Recipe) -> str:
    """The complete recipe, defaults written out; deterministic, and it loads to an equal recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))


def vocabulary_digest(recipe: Recipe) -> str:
    """Short digest of what a recipe says that decides a trimmed vocabulary, by which plans find its size."""
    data = recipe.data.model_dump(mode="json", exclude={"cache_dir"})
    student = recipe.student.model_dump(mode="json", include={"vocabulary_min_count", "vocabulary_list"})
    return digest_of([data, student, recipe.teacher.path, recipe.teacher.revision])[:16]


def recipe_digest(recipe: Recipe) -> str:
    """sha256 (hex) of what decides the mathematics; equal exactly when no mathematics differ."""
    leaves = {path: value for path, value in _leaves(recipe).items() if not _is_changeable(path, recipe)}
    return digest_of(leaves)


def recipe_difference(old: Recipe, new: Recipe) -> RecipeDifference:
    """Compare leaf by leaf, in the order of the schema."""
    before, after = _leaves(old), _leaves(new)
    mathematics: list[str] = []
    allowed: list[str] = []
    for path in [*before, *(path for path in after if path not in before)]:
        if path in before and path in after and before[path] == after[path]:
            continue
        changeable = _is_changeable(path, old) and _is_changeable(path, new)
        line = f"{path}: {_shown_at(before, path)} -> {_shown_at(after, path)}"
        (allowed if changeable else mathematics).append(line)
    return RecipeDifference(tuple(mathematics), tuple(allowed))


def _is_changeable(path: str, recipe: Recipe) -> bool:
    if path == "stop.max_steps" and _ends_at_max_steps(recipe):
        return False
    return any(path == prefix or path.startswith(prefix + ".") for prefix in CHANGEABLE)


def _ends_at_max_steps(recipe: Recipe) -> bool:
    """Whether stop.max_steps also shapes the learning rate, or says which steps are the last."""
    scheduled = recipe.schedule.name in ("linear", "cosine") and recipe.schedule.total_steps is None
    return scheduled or recipe.student.quantize is not None


def _leaves(recipe: Recipe) -> dict[str, Any]:
    return dict(_flatten(recipe.model_dump(mode="json"), ""))


def _flatten(value: Any, path: str) -> list[tuple[str, Any]]:
    """Leaves below `value`; a list of plain values is one leaf, a list of sections is not."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        items = list(enumerate(value))
    else:
        return [(path, value)]
    return [leaf for key, child in items for leaf in _flatten(child, f"{path}.{key}" if path else str(key))]


def _shown_at(leaves: Mapping[str, Any], path: str) -> str:
    return shown(leaves[path]) if path in leaves else "(absent)"
