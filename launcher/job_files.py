"""The files that a run is started with -> the job that a plan is made for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.overlap_rules import require_replica
from distill_engine.recipe.problem import RecipeError
from distill_engine.recipe.rules import read_recipe
from distill_engine.recipe.schema import Recipe
from launcher.hardware import Gpu
from launcher.job import Job
from launcher.shapes import shape_of, student_shape, teacher_shape


class JobFileError(ValueError):
    """A file that is no DeepSpeed JSON; the text names it."""


def read_job(
    recipe: Path, overrides: Sequence[str], nodes: int, per_node: int, student_ds: Path, teacher_ds: Path, gpu: Gpu
) -> Job:
    """What the files say. Raises RecipeError or JobFileError where they cannot be used."""
    checked = _recipe_without_its_data(recipe, overrides)
    teacher = teacher_shape(checked)
    student = student_shape(checked, teacher)
    others = tuple(shape_of(one.path, one.revision) for one in checked.teachers[1:])
    batch, own_teacher_ds = checked.batch, _read(teacher_ds)
    require_replica(checked, nodes * per_node, own_teacher_ds)
    job = Job(
        recipe=checked,
        student=student,
        teacher=teacher,
        student_ds=_read(student_ds),
        teacher_ds=own_teacher_ds,
        ranks=nodes * per_node,
        ranks_per_node=per_node,
        micro_batch=batch.per_rank,
        accumulation=batch.accumulation_steps,
        triton=gpu.triton,
        others=others,
    )
    # a budget holds as many of the longest examples: texts at their limits, or windows of sound
    rows = batch.per_rank if batch.max_tokens is None else max(1, batch.max_tokens // job.example_length)
    return replace(job, micro_batch=rows)


def _recipe_without_its_data(path: Path, overrides: Sequence[str]) -> Recipe:
    """A plan may be made before any data are there; every other problem counts."""
    try:
        return read_recipe(path, overrides)
    except RecipeError as error:
        if any(not problem.path.startswith("data.") for problem in error.problems):
            raise
        return load_recipe(path, overrides)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobFileError(f"{path}: {error}. It should be a DeepSpeed JSON; see ds_configs/.") from error
    if not isinstance(content, dict):
        raise JobFileError(f"{path}: it holds no JSON object. It should be a DeepSpeed JSON; see ds_configs/.")
    return content
