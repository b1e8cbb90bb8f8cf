"""Where the teacher lives when the recipe leaves it open; the plan and the run ask the same function."""

import pytest

from distill_engine.recipe.placement import placement_of
from distill_engine.recipe.schema import Recipe
from distill_engine.teachers.config import TeacherSection as Teacher

OFFLOADED = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}


def recipe(**teacher) -> Recipe:
    return Recipe.model_construct(teacher=Teacher(path="somewhere", **teacher))


@pytest.mark.parametrize(
    ("world_size", "teacher_ds", "placement", "said"),
    [
        (1, {}, "replica", "replica, one rank has nothing to shard"),
        (1, OFFLOADED, "offload", "offload, as the teacher's DeepSpeed JSON says"),
        (4, OFFLOADED, "offload", "offload, as"),
        (4, {"zero_optimization": {"stage": 3}}, "zero3", "zero3, shards over 4 ranks"),
    ],
)
def test_what_is_chosen_is_said(world_size, teacher_ds, placement, said):
    chosen, line = placement_of(recipe(), world_size, teacher_ds)
    assert chosen == placement and line.startswith(f"teacher.placement auto: {said}")


@pytest.mark.parametrize("asked", ["zero3", "node", "replica", "offload"])
def test_what_is_asked_for_is_kept(asked):
    assert placement_of(recipe(placement=asked), 1, OFFLOADED) == (asked, "")
