"""Where the teacher's weights live when the recipe leaves it open. No torch: the plan and the run decide alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_engine.engine.config import Placement
from distill_engine.recipe.schema import Recipe


def placement_of(recipe: Recipe, world_size: int, teacher_ds: Mapping[str, Any]) -> tuple[Placement, str]:
    """The placement, and a line that says why where it was chosen (empty where the recipe says it).

    teacher_ds  the teacher's DeepSpeed JSON as given

    A shard of one rank is the whole: a replica holds the same weights without the buffers through which layers are
    gathered, so it fits wherever shards would, and DeepSpeed's hooks on every layer are saved.
    """
    asked = recipe.teacher.placement
    if asked != "auto":
        return asked, ""
    block = teacher_ds.get("zero_optimization", {})
    offload = block.get("offload_param", {}) if isinstance(block, Mapping) else {}
    if isinstance(offload, Mapping) and offload.get("device") in ("cpu", "nvme"):
        return "offload", "teacher.placement auto: offload, as the teacher's DeepSpeed JSON says"
    if world_size == 1:
        return "replica", "teacher.placement auto: replica, one rank has nothing to shard"
    return "zero3", f"teacher.placement auto: zero3, shards over {world_size} ranks"
