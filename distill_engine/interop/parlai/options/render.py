"""A translated recipe as YAML text, its notes as comments."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import yaml
from pydantic import ValidationError

from distill_engine.interop.parlai.options.errors import ParlaiError
from distill_engine.interop.parlai.options.translate import Translation
from distill_engine.recipe.explain import explain
from distill_engine.recipe.rules import check_recipe
from distill_engine.recipe.schema import Recipe
from distill_engine.recipe.yaml_text import RecipeDumper

_WIDTH = 110


class _Dumper(RecipeDumper):
    """Writes a text with line breaks as "\\n" and not as lines."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def recipe_yaml(translation: Translation) -> str:
    """The recipe's text; below it a comment for each flag without equivalent, and what a check would refuse.

    Raises ParlaiError if a value is outside what a recipe allows.
    """
    recipe = checked(translation.recipe)
    parts = ["# Translated from a ParlAI command; keys that are not here have the recipe's defaults.\n"]
    sections = [_section(key, value) for key, value in translation.recipe.items()]
    parts += ["\n".join(["".join(sections[:1]), *sections[1:]])]
    notes = [_comment(f"{note.flag}: {note.text}") for note in translation.notes]
    if notes:
        parts += ["\n# No equivalent, or not the same:\n", *notes]
    problems = [_comment(str(problem)) for problem in check_recipe(recipe)]
    if problems:
        parts += ["\n# `distill check` will ask to repair this first:\n", *problems]
    return "".join(parts)


def checked(recipe: dict[str, Any]) -> Recipe:
    """The recipe as its model. Raises ParlaiError for values that a recipe cannot have."""
    try:
        return Recipe.model_validate_json(json.dumps(recipe), strict=True)
    except ValidationError as error:
        problems = [str(problem) for _, problem in explain(error.errors(), recipe)]
        raise ParlaiError("\n  ".join(["The command asks for what no recipe can say:", *problems])) from error


def _section(key: str, value: Any) -> str:
    text: str = yaml.dump(
        {key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=_WIDTH
    )
    return text


def _comment(text: str) -> str:
    lines = textwrap.wrap(text.replace("\n", "\\n"), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {'- ' if number == 0 else '  '}{line}\n" for number, line in enumerate(lines))
