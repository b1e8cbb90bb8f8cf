"""The teacher of a run, or several, from what was prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from distill_engine.assembly.knowledge import gold_batches, require_knowledge
from distill_engine.assembly.made_of import made_of
from distill_engine.data.order.collate import Picks
from distill_engine.data.order.loader import picked_batch
from distill_engine.engine.distributed import Ranks
from distill_engine.engine.teacher import TeacherEngine
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.recipe.placement import placement_of
from distill_engine.recipe.problem import Problem, RecipeError
from distill_engine.registry import load
from distill_engine.setup.prepare import Prepared
from distill_engine.teachers.columns import CacheError
from distill_engine.teachers.protocol import Teacher, TeacherParts
from distill_engine.values import Batch

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def teacher_of(
    ready: Prepared,
    ranks: Ranks,
    objective: Objective,
    ds_config: Mapping[str, Any],
    precision: str,
    keeps_head: bool,
    beat: Callable[[str], None],
    shares: PreTrainedModel | None = None,
) -> Teacher | None:
    """None where nothing is compared with a teacher. Collective; `keeps_head`: factors of logits will be asked for;
    `shares`: the student whose encoder is the teacher's.

    Raises RecipeError if its source cannot give what the losses compare.
    """
    recipe, shape, folder = ready.recipe, ready.teacher_shape, ready.teacher_folder
    if not objective.weights.needs_teacher:
        return None
    assert shape is not None and folder is not None
    source, cache = recipe.teacher.source, recipe.teacher.cache
    load_one = partial(_engine, ready, ranks, ds_config, precision, beat, shares)
    others = ((f"teachers.{number}.path", one) for number, one in enumerate(ready.others, 1))
    parts = TeacherParts(
        folder=folder,
        load=partial(load_one, "teacher.path", folder, keeps_head),
        window=recipe.teacher.window,
        vocabulary=shape.vocab,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
        dtype=_DTYPES[precision],
        cache=None if cache is None else Path(cache),
        made_of=partial(made_of, ready, ranks),
        weight=recipe.teachers[0].weight if recipe.teachers else 1.0,
        others=[(one.weight, partial(load_one, key, one.folder, False)) for key, one in others],
        temperature=recipe.losses.temperature,
        features_of=recipe.features_of,
    )
    try:
        teacher: Teacher = load("teachers", source).open(parts)
    except CacheError as error:
        raise RecipeError(recipe.name, [Problem("teacher.cache", f"is {cache}: {error}")]) from error
    missing = teacher.lacking(objective.teacher_request())
    if missing:
        what = f"is {source}, which does not give {', '.join(missing)}"
        fix = (
            "Set the weights of those terms to 0 (for head: losses.kernels.prediction: reference); or make a cache "
            "of this recipe in another folder"
        )
        problem = Problem("teacher.source", what, "A source gives all that the losses compare", fix)
        raise RecipeError(recipe.name, [problem])
    return teacher


def _engine(
    ready: Prepared,
    ranks: Ranks,
    ds_config: Mapping[str, Any],
    precision: str,
    beat: Callable[[str], None],
    shares: PreTrainedModel | None,
    key: str,
    folder: Path,
    keeps_head: bool,
) -> TeacherEngine:
    placement, _ = placement_of(ready.recipe, ranks.world_size, ds_config)
    beat("loading and sharding the teacher")
    teacher = TeacherEngine(folder, ds_config, _DTYPES[precision], ranks, adapt, placement, keeps_head=keeps_head)
    if shares is not None:
        teacher.share_encoder(shares)
    beat("trying the teacher on one batch")
    teacher.probe(probe_batch(ready).to(ranks.device))
    if not ready.recipe.teacher.allow_noise:
        batches = (batch.to(ranks.device) for batch in gold_batches(ready))
        require_knowledge(teacher, batches, ready.recipe, key, folder, ranks.broadcast)
    return teacher


def probe_batch(ready: Prepared) -> Batch:
    """The first one or two examples of training, batched as training does: within the position tables."""
    rows = np.arange(min(2, len(ready.train_datasets[0])))
    picks, multiple = Picks(np.zeros_like(rows), rows), ready.recipe.batch.pad_to_multiple_of
    return picked_batch(ready.train_datasets, picks, ready.layout, multiple)
