"""Rules about the sources of a recipe: what their kinds say, and names that tell them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from distill_engine.data.kinds.named import kind_of
from distill_engine.recipe.problem import Problem
from distill_engine.recipe.schema import Recipe


def sources_are_of_their_kind(recipe: Recipe) -> Iterator[Problem]:
    """What each kind demands of its sources."""
    for index, source in enumerate(recipe.data.tasks):
        for problem in kind_of(source).problems(source, recipe.data.root):
            yield replace(problem, path=f"data.tasks.{index}.{problem.path}")
    for kind in dict.fromkeys(map(kind_of, recipe.data.tasks)):
        yield from kind.problems_of_all([one for one in recipe.data.tasks if kind_of(one) is kind], recipe.data.root)


def labels_differ(recipe: Recipe) -> Iterator[Problem]:
    """Metrics per dataset need names that tell datasets apart."""
    labels = [source.title for source in recipe.data.tasks]
    for label, count in Counter(labels).items():
        if count > 1:
            where = [str(index) for index, other in enumerate(labels) if other == label]
            yield Problem(
                "data.tasks",
                f"has {count} entries ({', '.join(where)}) that are called {label!r} in metrics",
                "Names in metrics are unique",
                "Give each its own `label`",
            )


def validation_has_data(recipe: Recipe) -> Iterator[Problem]:
    """A run that validates has something to validate on."""
    triggers = {key: getattr(recipe.validation, key) for key in ("every_steps", "every_epochs", "every_seconds")}
    active = [f"validation.{key}" for key, value in triggers.items() if value is not None]
    if active and not any(kind_of(source).has(source, "valid") for source in recipe.data.tasks):
        yield Problem(
            "data.tasks",
            f"has no `valid` file, but validations are asked for ({', '.join(active)}) and decide by "
            f"{recipe.validation.metric} (validation.metric)",
            "Without a validation split that metric cannot be computed",
            "Name a `valid` file for at least one dataset, or remove the triggers",
        )


DATA_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    sources_are_of_their_kind,
    labels_differ,
    validation_has_data,
)
