"""Kinds of data by name, and a recipe's entries as their kinds have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import SerializeAsAny, ValidationError, WrapValidator
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from distill_engine.data.kinds.protocol import Kind, Source
from distill_engine.registry import load, names, unknown

UNKNOWN = "unknown_kind"  # pydantic's type of the error


def kind_of(source: Source) -> Kind:
    """The kind that a recipe's entry is of."""
    kind: Kind = load("kinds", source.kind)
    return kind


def options_of(entry: Any) -> type[Source]:
    """The keys that an entry may have: those of its kind, or of all sources where there is no such kind."""
    named = entry.get("kind", Source.model_fields["kind"].default) if isinstance(entry, Mapping) else None
    if named not in names("kinds"):
        return Source
    options: type[Source] = load("kinds", named).Options
    return options


def all_keys() -> dict[str, FieldInfo]:
    """The keys of the entries of all kinds."""
    return {key: field for name in names("kinds") for key, field in load("kinds", name).Options.model_fields.items()}


def _of_its_kind(entry: Any, handler: Callable[[Any], Source]) -> Source:
    """Entries are checked by the keys of their kind."""
    if not isinstance(entry, Mapping):
        return handler(entry)
    options = options_of(entry)
    if options is Source:
        named = entry["kind"]
        error = PydanticCustomError(UNKNOWN, "{text}", {"text": unknown("kinds", str(named))})
        details = [InitErrorDetails(type=error, loc=("kind",), input=named)]
        raise ValidationError.from_exception_data("Source", details)
    return options.model_validate_json(json.dumps(entry), strict=True)


AnySource = Annotated[SerializeAsAny[Source], WrapValidator(_of_its_kind)]
