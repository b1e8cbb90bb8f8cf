"""Sizes of the two models, from a recipe and the teacher's config.json; counted without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_engine.cluster.files import folder_of_cache
from distill_engine.families.lookup import family_named, family_of, fresh_shape
from distill_engine.families.shape import SIZES, Shape
from distill_engine.recipe.identity import vocabulary_digest
from distill_engine.recipe.problem import Problem, RecipeError
from distill_engine.recipe.schema import Recipe
from distill_engine.registry import names


def teacher_shape(recipe: Recipe) -> Shape | None:
    """None without a teacher. Raises RecipeError if its sizes cannot be found on this machine."""
    path = recipe.teacher.path
    return None if path is None else shape_of(path, recipe.teacher.revision, trimmed_rows(recipe))


def shape_of(path: str, revision: str | None, rows: int | None = None) -> Shape:
    """Of a teacher's folder or name; `rows`: of its vocabulary, where that is a trimmed one. Raises RecipeError if its
    sizes cannot be found on this machine."""
    config = _config_of(path, revision)
    if config is not None:
        sizes = {} if rows is None else {name: rows for name in config if name.endswith("vocab_size")}
        return _shape_of({**config, **sizes}, path)
    families = [family_named(name) for name in names("families")]
    published = {name: family.shape(one) for family in families for name, one in family.known.items()}
    if path in published:
        return published[path]
    what = f"is {path!r}: its config.json is neither in a folder of that name nor in the Hugging Face cache"
    fix = f"Download it, or name one whose sizes are known: {', '.join(published)}"
    raise RecipeError("teacher.path", [Problem("teacher.path", what, "A plan needs the teacher's sizes", fix)])


def trimmed_rows(recipe: Recipe) -> int | None:
    """Rows of a trimmed vocabulary, which teacher and student have alike; None where it is whole, or where this
    machine's cache does not hold it yet (`distill check` makes it)."""
    if recipe.student.vocabulary == "all":
        return None
    cache = folder_of_cache(recipe.data.cache_dir, os.environ)
    file = cache / "vocabularies" / f"{vocabulary_digest(recipe)}.json"
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, KeyError):
        return None


def student_shape(recipe: Recipe, teacher: Shape | None) -> Shape:
    """The recipe's sizes; those left out are the teacher's. Raises RecipeError when one is given by neither."""
    given = recipe.student
    if teacher is not None:
        return teacher.resized(given.sizes)
    unneeded = "" if given.family is None or family_named(given.family).takes_positions else "positions"
    wanted = {"family": given.family, "vocab": _vocabulary(recipe)}
    wanted |= {name: getattr(given, name) for name in SIZES if "dropout" not in name and name != unneeded}
    missing = [name for name, value in wanted.items() if value is None]
    if missing:
        problems = [
            Problem(f"student.{name}", "is not given, and there is no teacher to take it from") for name in missing
        ]
        raise RecipeError("student", problems)
    return fresh_shape(str(given.family), int(wanted["vocab"] or 0), given.sizes)


def _config_of(path: str, revision: str | None) -> Mapping[str, Any] | None:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{path.replace('/', '--')}" / "snapshots"
    for file in (Path(path) / "config.json", *sorted(hub.glob(f"{revision or '*'}/config.json"))):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            return config
    return None


def _shape_of(config: Mapping[str, Any], path: str) -> Shape:
    known = config.get("model_type") in names("families")
    missing = family_of(config).missing(config) if known else ["a model_type that is known"]
    if missing:
        what = f"is {path!r}, whose config.json lacks {', '.join(missing)}"
        raise RecipeError("teacher.path", [Problem("teacher.path", what, "It is the file that save_pretrained writes")])
    return family_of(config).shape(config)


def _vocabulary(recipe: Recipe) -> int | None:
    """Entries of the tokenizer's file; None where there is none on this machine."""
    file = Path(recipe.data.tokenizer or "") / "tokenizer.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return len(content["model"]["vocab"]) + len(
            {one["content"] for one in content.get("added_tokens", [])} - set(content["model"]["vocab"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
