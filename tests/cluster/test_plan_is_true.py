"""The plan's memory figures beside what DeepSpeed really made, read from the checkpoint of a run on two ranks."""

import json

import pytest
import torch

from distill_engine.recipe.load import load_recipe
from launcher.memory_model import Job, optimizer
from launcher.shapes import student_shape, teacher_shape


@pytest.fixture(scope="module")
def job(quiet_run, tools) -> Job:
    recipe = load_recipe(quiet_run / "recipe.yaml")
    teacher = teacher_shape(recipe)
    configs = [json.loads((quiet_run / name).read_text()) for name in ("ds_config.json", "teacher_ds_config.json")]
    return Job(recipe, student_shape(recipe, teacher), teacher, *configs, 2, 2, recipe.batch.per_rank, 1)


def bytes_of(value: object, seen: set[int]) -> int:
    """Of all different tensors with more than one element, wherever they are nested."""
    if isinstance(value, torch.Tensor):
        place = value.data_ptr()  # tied weights are one tensor; others share only their storage
        if value.numel() < 2 or place in seen:
            return 0
        seen.add(place)
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(bytes_of(one, seen) for one in value.values())
    if isinstance(value, (list, tuple)):
        return sum(bytes_of(one, seen) for one in value)
    return 0


def test_optimizer_and_student_are_within_15_percent_of_what_deepspeed_holds(quiet_run, job):
    checkpoint = sorted((quiet_run / "checkpoints").glob("step-*"))[-1]
    shards = sorted(checkpoint.glob("student/engine/*optim_states.pt"))
    assert len(shards) == 2
    for shard in shards:
        held = bytes_of(torch.load(shard, map_location="cpu", weights_only=False), set())
        assert optimizer(job) == pytest.approx(held, rel=0.15)
    (model,) = checkpoint.glob("student/engine/*model_states.pt")
    held = bytes_of(torch.load(model, map_location="cpu", weights_only=False)["module"], set())
    assert job.trained * job.word == pytest.approx(held, rel=0.15)
