"""What the schema says about a mistake: pydantic's errors as problems a person can act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from distill_engine.data.kinds.named import UNKNOWN, all_keys, options_of
from distill_engine.data.kinds.protocol import Source
from distill_engine.losses.config import LossWeights
from distill_engine.recipe.problem import Problem, did_you_mean, shown
from distill_engine.recipe.schema import Recipe
from distill_engine.recipe.yaml_text import Path, dotted

# Plain words for pydantic's names of types.
PLAIN_RULES = {
    "int_type": "be a whole number",
    "int_from_float": "be a whole number",
    "float_type": "be a number",
    "string_type": "be a text",
    "bool_type": "be true or false",
    "list_type": "be a list",
    "tuple_type": "be a list",
    "dict_type": "be a section of `key: value` lines",
    "model_type": "be a section of `key: value` lines",
    "model_attributes_type": "be a section of `key: value` lines",
}


def explain(errors: list[ErrorDetails], data: Any) -> list[tuple[Path, Problem]]:
    """One problem per place, with that place's path, in the order of the errors.

    `data` is what was validated: it tells real path parts from the union branches that pydantic adds to them.
    """
    by_path: dict[Path, list[ErrorDetails]] = {}
    for error in errors:
        by_path.setdefault(_real_path(error, data), []).append(error)
    return [(path, _problem(path, group, data)) for path, group in by_path.items()]


def _real_path(error: ErrorDetails, data: Any) -> Path:
    path: list[str | int] = []
    for part in error["loc"]:
        if _holds(data, part):
            data = data[part]
        elif error["type"] != "missing" or part != error["loc"][-1]:
            continue
        path.append(part)
    return tuple(path)


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, Mapping):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _problem(path: Path, errors: list[ErrorDetails], data: Any) -> Problem:
    kind = errors[0]["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, data)
    if kind == UNKNOWN:
        return Problem(dotted(path), f"is {shown(errors[0]['input'])}", errors[0]["msg"])
    meaning = _meaning(path, data)
    if kind == "missing":
        return Problem(dotted(path), "is missing", "It has no default", meaning)
    rules = dict.fromkeys(_rule(error) for error in errors)
    fix = " ".join(filter(None, (_remedy(path, errors, data), meaning)))
    return Problem(dotted(path), f"is {shown(errors[0]['input'])}", f"It should {' or '.join(rules)}", fix)


def _rule(error: ErrorDetails) -> str:
    """What the value should do or be: `be greater than 0`."""
    return PLAIN_RULES.get(error["type"]) or error["msg"].partition(" should ")[2] or error["msg"]


def _unknown_key(path: Path, data: Any) -> Problem:
    key, section = str(path[-1]), _section_at(path[:-1], data)
    known = list(fields_of(section)) if section else []
    home = _elsewhere(key)
    suggestion = did_you_mean(key, known) or (f"Did you mean {home}?" if home else "")
    rule = f"The keys here are: {', '.join(known)}" if known else "Nothing can stand below this key"
    return Problem(dotted(path), "is not a key that a recipe has", rule, suggestion)


def _remedy(path: Path, errors: list[ErrorDetails], data: Any) -> str:
    """What to do about a wrong type, where the mistake is a common one."""
    kind, value = errors[0]["type"], errors[0]["input"]
    if kind == "literal_error" and isinstance(value, str):
        field = _field_at(path, data)
        return did_you_mean(value, [str(choice) for choice in _literals(field.annotation if field else None)])
    if kind == "bool_type":
        return "Write it without quotes."
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return "Write a plain number, without quotes or units."
    if kind == "string_type":
        return "Quote it if a text is meant."
    if value is None and kind in ("dict_type", "model_type", "model_attributes_type"):
        return "Give it keys, or delete the line."
    return ""


def _meaning(path: Path, data: Any) -> str:
    """The sentence that documents the field at `path`, if it has one."""
    field = _field_at(path, data)
    return f"Meaning: {field.description.rstrip('.')}." if field and field.description else ""


def fields_of(section: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """A section's keys; those of loss weights are the registered terms', those of a source of any kind all kinds'."""
    if section is Source:
        return all_keys()
    return section.fields() if issubclass(section, LossWeights) else section.model_fields


def _field_at(path: Path, data: Any) -> FieldInfo | None:
    section = _section_at(path[:-1], data)
    return fields_of(section).get(str(path[-1])) if section and path else None


def _section_at(path: Path, data: Any) -> type[BaseModel] | None:
    """The section whose keys stand at `path` (list positions do not count); a source's are those of its kind."""
    section: type[BaseModel] | None = Recipe
    for part in path:
        data = data[part] if _holds(data, part) else None
        if isinstance(part, str) and section is not None:
            field = fields_of(section).get(part)
            section = _section_in(field.annotation) if field else None
        elif section is Source:
            section = options_of(data)
    return section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _section_in(argument))), None)


def _literals(annotation: Any) -> Iterator[Any]:
    for argument in get_args(annotation):
        yield from _literals(argument) if get_args(argument) else [argument]


def _elsewhere(key: str) -> str:
    """Where in the schema a key of this name lives, if in exactly one place."""
    homes = [path for path in _all_keys(Recipe, "") if path.rsplit(".", 1)[-1] == key]
    return homes[0] if len(homes) == 1 else ""


def _all_keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in fields_of(section).items():
        yield prefix + name
        inner = _section_in(field.annotation)
        if inner is not None:
            yield from _all_keys(inner, f"{prefix}{name}.")
