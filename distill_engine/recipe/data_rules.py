"""Rules about the sources of a recipe: known names, files that are there, names that tell them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from distill_engine.recipe.problem import Problem, did_you_mean
from distill_engine.recipe.schema import Recipe, TaskSource

FILE_TASKS = ("parlai_text", "conversations")
READABLE_TASKS = ("demo", *FILE_TASKS)
DIALOGUE_TASKS = (
    "blended_skill_talk",
    "wizard_of_wikipedia",
    "convai2",
    "convai2:normalized",
    "empathetic_dialogues",
)
SPLITS = ("train", "valid", "test")


def task_names_are_known(recipe: Recipe) -> Iterator[Problem]:
    """There is a reader for every task."""
    for path, task in _tasks(recipe):
        if task.name in DIALOGUE_TASKS:
            yield Problem(
                f"{path}.name",
                f"is {task.name!r}, and there is no reader for this task yet",
                f"Tasks that can be read: {', '.join(READABLE_TASKS)}",
                "Export its dialogues as ParlAI text or conversations JSONL, and name these files with "
                "`name: parlai_text` or `name: conversations`",
            )
        elif task.name not in READABLE_TASKS:
            known = (*READABLE_TASKS, *DIALOGUE_TASKS)
            rule = f"The tasks are: {', '.join(known)}"
            yield Problem(f"{path}.name", f"is {task.name!r}, an unknown task", rule, did_you_mean(task.name, known))


def file_tasks_have_files(recipe: Recipe) -> Iterator[Problem]:
    """A task that reads files names a training file, and each named file can be read."""
    for path, task in _tasks(recipe):
        if task.name not in FILE_TASKS:
            continue
        if task.train is None:
            rule = f"A {task.name} task reads files"
            yield Problem(f"{path}.train", "is missing", rule, "Name the training file")
        for split in SPLITS:
            file: str | None = getattr(task, split)
            if file is not None:
                yield from _file_problems(f"{path}.{split}", file)


def _file_problems(path: str, file: str) -> Iterator[Problem]:
    place = Path(file)
    if file == "":
        yield Problem(path, "is an empty text", fix="Name a file, or remove the key")
    elif place.is_dir():
        yield Problem(path, f"is {file!r}, which is a folder", "A task reads one file", "Name a file in it")
    elif not place.exists():
        rule = "A relative path starts at the recipe's folder or at the working directory"
        yield Problem(path, f"is {file!r}, which does not exist", rule, _neighbour(place))
    elif place.is_file() and place.stat().st_size == 0:
        yield Problem(path, f"is {file!r}, which is empty", "A file holds at least one example")


def _neighbour(place: Path) -> str:
    """A file of almost that name, if there is one."""
    folder = place.parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return did_you_mean(place.name, names)


def other_tasks_have_no_files(recipe: Recipe) -> Iterator[Problem]:
    """The demo makes its dialogues; a file named for it would be ignored."""
    for path, task in _tasks(recipe):
        named = [split for split in SPLITS if getattr(task, split) is not None]
        if task.name == "demo" and named:
            what = f"is {getattr(task, named[0])!r}, but the demo makes its own dialogues"
            fix = f"Remove {', '.join(named)}, or set name: {' or '.join(FILE_TASKS)}"
            yield Problem(f"{path}.{named[0]}", what, fix=fix)


def labels_differ(recipe: Recipe) -> Iterator[Problem]:
    """Metrics per task need names that tell tasks apart."""
    labels = [task.label or task.name for task in recipe.data.tasks]
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
    only_files = all(task.name in FILE_TASKS for task in recipe.data.tasks)
    if active and only_files and all(task.valid is None for task in recipe.data.tasks):
        yield Problem(
            "data.tasks",
            f"has no `valid` file, but validations are asked for ({', '.join(active)}) and decide by "
            f"{recipe.validation.metric} (validation.metric)",
            "Without a validation split that metric cannot be computed",
            "Name a `valid` file for at least one task, or remove the triggers",
        )


def _tasks(recipe: Recipe) -> Iterator[tuple[str, TaskSource]]:
    for index, task in enumerate(recipe.data.tasks):
        yield f"data.tasks.{index}", task


DATA_RULES: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    task_names_are_known,
    file_tasks_have_files,
    other_tasks_have_no_files,
    labels_differ,
    validation_has_data,
)
