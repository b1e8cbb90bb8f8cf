"""The teacher's folder: found or downloaded, its configuration read, its weight files looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import RepositoryNotFoundError

from distill_engine.models.loading import Checkpoint, local_copy, problem_of_teacher
from distill_engine.models.weight_files import WeightsError
from distill_engine.recipe.problem import Problem, RecipeError, raise_if_any
from distill_engine.recipe.schema import Recipe


def teacher_folder(recipe: Recipe) -> Path | None:
    """The teacher's local folder: as given, or downloaded from Hugging Face (the cache makes that idempotent)."""
    path = recipe.teacher.path
    if path is None:
        return None
    try:
        return local_copy(path, recipe.teacher.revision)
    except RepositoryNotFoundError as error:
        raise_if_any("teacher.path", [_no_teacher(path, "is neither a folder here nor a Hugging Face model")])
        raise AssertionError from error
    except Exception as error:  # without a network the Hub's client raises what its HTTP library raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = f"is no folder here, and the Hugging Face Hub did not give it ({type(error).__name__}: {reason})"
        raise_if_any("teacher.path", [_no_teacher(path, what)])
        raise AssertionError from error


def _no_teacher(path: str, what: str) -> Problem:
    return Problem(
        "teacher.path",
        f"is {path!r}, which {what}",
        "The teacher is a folder written by save_pretrained or a model's name on the Hub",
        "Correct the path, or download it on a node with network access first (HF_HOME says where it goes)",
    )


def read_config(folder: Path, source: Path | str) -> Mapping[str, Any]:
    """Its config.json. Raises RecipeError where that cannot be read."""
    file, cause = folder / "config.json", None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        reason = "" if isinstance(config, dict) else "it holds no JSON object"
    except (OSError, ValueError) as error:
        config, reason, cause = {}, str(error), error
    if reason:
        rule = "A teacher's folder is one that save_pretrained has written"
        problem = Problem("teacher.path", f"is {str(folder)!r}: config.json cannot be read ({reason})", rule)
        raise RecipeError(source, [problem]) from cause
    return config


def check_weights(folder: Path) -> None:
    """Raises WeightsError for weight files that are missing, damaged or another model's (their headers are read)."""
    try:
        Checkpoint(folder)
    except WeightsError as error:
        raise WeightsError(problem_of_teacher(folder, error)) from error
