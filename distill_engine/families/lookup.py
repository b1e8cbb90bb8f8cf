"""The family of a model, by its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_engine.data.tokens.layout import SpecialTokens
from distill_engine.families.protocol import Family
from distill_engine.families.shape import Shape, Sizes
from distill_engine.registry import load, names, unknown


def family_named(name: str) -> Family:
    """Raises RegistryError for a name that no family has."""
    found: Family = load("families", name)
    return found


def family_of(config: Mapping[str, Any] | Any) -> Family:
    """The family of a Hugging Face configuration (mapping or object). Raises ValueError for an unknown model type."""
    model_type = config.get("model_type") if isinstance(config, Mapping) else config.model_type
    if model_type not in names("families"):
        raise ValueError(f"model type {unknown('families', str(model_type))}")
    return family_named(str(model_type))


def introduce(config: Mapping[str, Any]) -> None:
    """Import the module of a config.json's family: one from outside tells transformers of its classes there."""
    if config.get("model_type") in names("families"):
        family_of(config)


def shape_of(config: Any) -> Shape:
    """The shape of a Hugging Face configuration object."""
    return family_of(config).shape(config.to_dict())


def start_of(known: Any) -> int | None:
    """The start token of a configuration or a tokenizer; not every family has one."""
    start: int | None = getattr(known, "bos_token_id", None)
    return start


def fresh_shape(name: str, vocabulary: int, sizes: Sizes) -> Shape:
    """The shape of a model without a teacher; `sizes` has all but the dropouts."""
    family = family_named(name)
    return family.shape(family.fresh(sizes, vocabulary, SpecialTokens(pad=0, start=1, end=2)))
