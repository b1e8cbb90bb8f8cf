"""A recipe file and its `--set a.b=value` overrides -> one checked Recipe, or every problem at once."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from distill_engine.recipe.explain import explain
from distill_engine.recipe.identity import RecipeDifference, recipe_difference, recipe_digest, resolved_yaml
from distill_engine.recipe.problem import Problem, RecipeError, did_you_mean, raise_if_any, shown
from distill_engine.recipe.schema import Recipe
from distill_engine.recipe.section import Section
from distill_engine.recipe.yaml_text import Path as KeyPath
from distill_engine.recipe.yaml_text import YamlDocument, dotted, parse_yaml

__all__ = [
    "RecipeDifference",
    "RecipeError",
    "load_recipe",
    "raise_if_any",
    "recipe_difference",
    "recipe_digest",
    "resolved_yaml",
    "without_folders",
]

SectionT = TypeVar("SectionT", bound=Section)

RECIPE_RULE = "A recipe is a YAML file of sections with `key: value` lines"
RECIPE_FIX = "Start from one of the files in recipes/"


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `a.b=value` overrides.

    The value of an override is YAML; list entries go by number: `data.datasets.0.weight=2`.
    A relative path in the file means the recipe's own folder where something of that name exists there;
    otherwise it stays as written (a Hugging Face name, or relative to the working directory). Paths given
    by an override stay as written.

    Raises RecipeError that lists every problem of text, keys, types and ranges; `rules.check_recipe` has the
    rules between sections.
    """
    document = parse_yaml(_read(path))
    raise_if_any(path, _shape_problems(document))
    data = copy.deepcopy(document.data)
    problems = list(document.problems)
    overridden: list[KeyPath] = []
    for override in overrides:
        _apply(override, data, overridden, problems)
    recipe, wrong = _validate(data)
    problems += [_placed(problem, where, document, overridden) for where, problem in wrong]
    raise_if_any(path, sorted(problems, key=lambda problem: problem.line or sys.maxsize))
    assert recipe is not None, "no problems, so there is a recipe"
    return _with_paths(recipe, {dotted(key) for key in overridden}, lambda name: _resolved(name, path.parent))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is {error.object[error.start]:#04x}, which is not UTF-8"
        line = error.object[: error.start].count(b"\n") + 1
        problem = Problem("", what, "A recipe is UTF-8 text", "Save it as UTF-8", line)
    except FileNotFoundError:
        recipes = [other.name for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        problem = Problem("", "there is no such file", fix=did_you_mean(path.name, recipes))
    except OSError as error:
        problem = Problem("", f"cannot be read: {error.strerror}", "A recipe is a readable YAML file")
        raise RecipeError(path, [problem]) from error
    raise RecipeError(path, [problem])


def _shape_problems(document: YamlDocument) -> list[Problem]:
    """Reasons to stop before looking at keys: no document, or one that has no keys."""
    if isinstance(document.data, dict):
        return []
    if document.data is None:
        return document.problems or [Problem("", "the file is empty", RECIPE_RULE, RECIPE_FIX)]
    return [Problem("", f"the file holds {shown(document.data)}", RECIPE_RULE, RECIPE_FIX)]


def _apply(override: str, data: dict[str, Any], overridden: list[KeyPath], problems: list[Problem]) -> None:
    """Write one override into `data`, or say why it cannot be written."""
    name, equals, text = override.partition("=")
    value = parse_yaml(text)
    path = tuple(int(part) if part.isdecimal() else part for part in name.strip().split("."))
    if not equals or "" in path:
        what = f"--set {shown(override)} cannot be read"
        problems.append(Problem("", what, "It should look like section.key=value"))
    elif value.problems:
        problems.append(Problem(dotted(path), f"is set to {shown(text)}, which is not valid YAML"))
    elif (obstacle := _write(data, path, value.data)) is not None:
        problems.append(obstacle)
    else:
        overridden.append(path)


def _write(node: Any, path: KeyPath, value: Any) -> Problem | None:
    """Set `path` below `node`, making sections that the file leaves out."""
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(node, list):
            if not isinstance(part, int) or part >= len(node):
                entry = dotted(path[: depth + 1])
                rule = f"{dotted(path[:depth])} has {len(node)} entries, counted from 0"
                return Problem(entry, "is set by --set, but there is no such entry", rule)
        elif isinstance(node, dict):
            if not last and node.get(part) is None:
                node[part] = {}
        else:
            what = f"is set by --set, but {dotted(path[:depth])} is {shown(node)}"
            return Problem(dotted(path), what, "Only sections and lists have something below them")
        if last:
            node[part] = value
        else:
            node = node[part]
    return None


def _validate(data: Any) -> tuple[Recipe | None, list[tuple[KeyPath, Problem]]]:
    """Check types strictly; through JSON, because then lists still make tuples."""
    try:
        text = json.dumps(data, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        what = f"the file holds something that is no plain value: {error}"
        return None, [((), Problem("", what, RECIPE_RULE, "Remove YAML tags and references"))]
    try:
        return Recipe.model_validate_json(text, strict=True), []
    except ValidationError as error:
        return None, explain(error.errors(), json.loads(text))


def _placed(problem: Problem, where: KeyPath, document: YamlDocument, overridden: list[KeyPath]) -> Problem:
    """The problem with its line, or marked as coming from the command line."""
    if any(where[: len(path)] == path or path[: len(where)] == where for path in overridden):
        return Problem(problem.path, f"{problem.what} (from --set)", problem.rule, problem.fix)
    return Problem(problem.path, problem.what, problem.rule, problem.fix, document.line_of(where))


def without_folders(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths cut to their last name: for publishing, where this machine's folders say nothing
    to a reader and may say too much about the author. `data.cache_dir`, which changes no result, goes."""
    shorter = _with_paths(recipe, set(), lambda path: Path(path).name if Path(path).is_absolute() else path)
    return shorter.model_copy(update={"data": shorter.data.model_copy(update={"cache_dir": None})})


def _with_paths(recipe: Recipe, kept: set[str], change: Callable[[str], str]) -> Recipe:
    """Every key that may name a file or folder, changed, but for those in `kept`."""

    def changed(section: SectionT, prefix: str, *keys: str) -> SectionT:
        paths = {key: getattr(section, key) for key in keys if f"{prefix}.{key}" not in kept}
        return section.model_copy(update={key: change(path) for key, path in paths.items() if path is not None})

    sources = enumerate(recipe.data.datasets)
    datasets = [changed(dataset, f"data.datasets.{index}", "train", "valid", "test") for index, dataset in sources]
    data = changed(recipe.data, "data", "root", "tokenizer").model_copy(update={"datasets": datasets})
    student = changed(recipe.student, "student", "vocabulary_list")
    teacher, several = changed(recipe.teacher, "teacher", "path", "cache"), enumerate(recipe.teachers)
    teachers = [changed(one, f"teachers.{index}", "path") for index, one in several]
    if teachers and teacher.path is None:  # the first is the teacher wherever only one can be
        revision = teacher.revision or teachers[0].revision
        teacher = teacher.model_copy(update={"path": teachers[0].path, "revision": revision})
    changes = {"data": data, "student": student, "teacher": teacher, "teachers": teachers}
    return recipe.model_copy(update=changes)


def _resolved(value: str, folder: Path) -> str:
    """An absolute path where `value` names something in `folder` (or a home folder), else `value` itself."""
    if value.startswith("~"):
        return str(Path(value).expanduser())
    try:
        found = value != "" and (folder / value).exists()
    except OSError:  # longer than a file name can be: no path
        return value
    return str(folder.resolve() / value) if found and not Path(value).is_absolute() else value
