"""Rules about the sources of a recipe: known names, files that are there, names that tell them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from distill_engine.recipe.problem import Problem, did_you_mean
from distill_engine.recipe.schema import Recipe, TaskSource

FOLDER_TASKS = ("hf_dataset",)
FILE_TASKS = ("parlai_text", "conversations", "fbdialog", *FOLDER_TASKS)
# ParlAI's folder of each dialogue task below data.root.
DIALOGUE_TASKS = {
    "blended_skill_talk": "blended_skill_talk",
    "wizard_of_wikipedia": "wizard_of_wikipedia",
    "convai2": "ConvAI2",
    "convai2:normalized": "ConvAI2",
    "empathetic_dialogues": "empatheticdialogues",
}
READABLE_TASKS = ("demo", *FILE_TASKS, *DIALOGUE_TASKS)
SPLITS = ("train", "valid", "test")


def task_names_are_known(recipe: Recipe) -> Iterator[Problem]:
    """There is a reader for every task."""
    for path, task in _tasks(recipe):
        if task.name not in READABLE_TASKS:
            rule = f"The tasks are: {', '.join(READABLE_TASKS)}"
            fix = did_you_mean(task.name, READABLE_TASKS)
            yield Problem(f"{path}.name", f"is {task.name!r}, an unknown task", rule, fix)


def dialogue_tasks_are_in_the_root(recipe: Recipe) -> Iterator[Problem]:
    """Downloaded tasks have a folder under data.root, laid out as ParlAI does."""
    named = list(dict.fromkeys(task.name for task in recipe.data.tasks if task.name in DIALOGUE_TASKS))
    fetched = list(dict.fromkeys(name.partition(":")[0] for name in named))
    rule = "Dialogue tasks are read from data.root, a folder laid out as ParlAI's `data`"
    root = recipe.data.root
    if named and root is None:
        fix = f"Name that folder; `distill data fetch {' '.join(fetched)} --root FOLDER` fills one"
        yield Problem("data.root", f"is null, but data.tasks has {', '.join(named)}", rule, fix)
    elif named and root is not None and not Path(root).expanduser().is_dir():
        fix = _neighbour(Path(root)) or f"Correct it, or `distill data fetch {' '.join(fetched)} --root {root}`"
        yield Problem("data.root", f"is {root!r}, which is no folder", rule, fix)
    elif root is not None:
        for name in fetched:
            folder = Path(root).expanduser() / DIALOGUE_TASKS[name]
            if not folder.is_dir():
                fix = f"Correct data.root, or `distill data fetch {name} --root {root}`"
                yield Problem("data.root", f"is {root!r}, but there is no folder {folder} in it", rule, fix)


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
                yield from _file_problems(f"{path}.{split}", file, task.name in FOLDER_TASKS)


def _file_problems(path: str, file: str, may_be_folder: bool) -> Iterator[Problem]:
    place = Path(file)
    if file == "":
        yield Problem(path, "is an empty text", fix="Name a file, or remove the key")
    elif place.is_dir() and not may_be_folder:
        yield Problem(path, f"is {file!r}, which is a folder", "A task reads one file", "Name a file in it")
    elif not place.exists():
        rule = "A relative path starts at the recipe's folder or at the working directory"
        yield Problem(path, f"is {file!r}, which does not exist", rule, _neighbour(place))
    elif not (place.is_file() or place.is_dir()):  # opening a pipe waits for a writer, perhaps for ever
        yield Problem(path, f"is {file!r}, which is a pipe or a device", "A task reads a file", "Write it to a file")
    elif place.is_file() and place.stat().st_size == 0:
        yield Problem(path, f"is {file!r}, which is empty", "A file holds at least one example")


def _neighbour(place: Path) -> str:
    """A file of almost that name, if there is one."""
    folder = place.parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return did_you_mean(place.name, names)


def other_tasks_have_no_files(recipe: Recipe) -> Iterator[Problem]:
    """The demo makes its dialogues and downloaded tasks lie in data.root; a file named for them would be ignored."""
    sources = {"demo": "the demo makes its own dialogues"}
    sources |= {name: f"{name} is read from data.root" for name in DIALOGUE_TASKS}
    for path, task in _tasks(recipe):
        named = [split for split in SPLITS if getattr(task, split) is not None]
        if task.name in sources and named:
            what = f"is {getattr(task, named[0])!r}, but {sources[task.name]}"
            fix = f"Remove {', '.join(named)}, or set name: {' or '.join(FILE_TASKS)}"
            yield Problem(f"{path}.{named[0]}", what, fix=fix)


def options_fit_their_task(recipe: Recipe) -> Iterator[Problem]:
    """An option that only one reader knows stands with that reader; elsewhere it would be ignored."""
    for path, task in _tasks(recipe):
        if task.topic_split and task.name != "wizard_of_wikipedia":
            what = f"is true, but the task is {task.name!r}"
            yield Problem(f"{path}.topic_split", what, "Only wizard_of_wikipedia has a topic split", "Remove it")
        if not task.normalized and task.name != "hf_dataset":
            rule = "It says how hf_dataset spells ConvAI2's dialogues; convai2 and convai2:normalized say so by name"
            yield Problem(f"{path}.normalized", f"is false, but the task is {task.name!r}", rule, "Remove it")


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
    dialogue_tasks_are_in_the_root,
    other_tasks_have_no_files,
    options_fit_their_task,
    labels_differ,
    validation_has_data,
)
