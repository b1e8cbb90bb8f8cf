"""teacher.overlap: the teacher and the data of a run one micro-batch ahead of its student, where that is possible."""

from __future__ import annotations

from collections.abc import Callable

import torch

from distill_engine.data.order.ahead import AheadLoader
from distill_engine.data.order.loader import TrainLoader
from distill_engine.recipe.schema import Recipe
from distill_engine.teachers.ahead import AheadTeacher
from distill_engine.teachers.protocol import Teacher
from distill_engine.train.loop import Trainer


def overlapped(
    recipe: Recipe, teacher: Teacher | None, loader: TrainLoader, device: torch.device, say: Callable[[str], None]
) -> tuple[Teacher | None, TrainLoader | AheadLoader]:
    """What the training loop is given of the run's teacher and data; they themselves without teacher.overlap."""
    if teacher is None or not recipe.teacher.overlap:
        return teacher, loader
    if not has_streams(device):
        say("teacher.overlap: a CPU has no streams; the teacher runs between the student's passes")
        return teacher, loader
    ahead = AheadLoader(loader, device)
    return AheadTeacher(teacher, ahead.upcoming, device), ahead


def ending_on_time(trainer: Trainer) -> Trainer:
    """The same trainer, whose step that is known to be the last begins nothing for another."""
    batches, limits = trainer.batches, trainer.policies.limits
    if isinstance(batches, AheadLoader):
        batches.goes_on = lambda: not limits.last(trainer.progress.steps + 1, batches.epoch)
    return trainer


def has_streams(device: torch.device) -> bool:
    """Whether two passes can run beside each other."""
    return device.type == "cuda"
