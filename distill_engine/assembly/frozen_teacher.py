"""A teacher of one process, for commands that need no process group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from distill_engine.evaluate.measure import load_model
from distill_engine.models.adapter import adapt
from distill_engine.setup.prepare import Prepared
from distill_engine.teachers.columns import DTYPES
from distill_engine.teachers.live import LiveTeacher
from distill_engine.teachers.mixture import Mixture
from distill_engine.teachers.protocol import Engine
from distill_engine.values import Batch, FeatureRequest, Features


class Frozen:
    """A teacher whole in the memory of one device, outside of any process group."""

    def __init__(self, folder: Path, precision: str, device: torch.device) -> None:
        """Raises ModelError (a ValueError) if it cannot be loaded."""
        self.model = load_model(folder, device, DTYPES[precision])
        self._shows = adapt(self.model).eval()

    @torch.no_grad()
    def features(self, batch: Batch, request: FeatureRequest) -> Features:
        """One forward pass."""
        shown: Features = self._shows(batch, request)
        return shown


class FrozenMixture:
    """Several of them as one; `model` is the first one's."""

    def __init__(
        self, teachers: Sequence[Frozen], weights: Sequence[float], temperature: float, features_of: int
    ) -> None:
        """As Mixture."""
        self.model = teachers[0].model
        self._mixture = Mixture([LiveTeacher(one) for one in teachers], weights, temperature, features_of)

    def features(self, batch: Batch, request: FeatureRequest) -> Features:
        """One forward pass of each."""
        return next(self._mixture.features([batch], request))


def teacher_alone(ready: Prepared, precision: str, device: torch.device) -> Engine:
    """The teacher, or all of them, whole in the memory of one device. Raises ModelError."""
    assert ready.teacher_folder is not None
    first, recipe = Frozen(ready.teacher_folder, precision, device), ready.recipe
    if not ready.others:
        return first
    every = [first, *(Frozen(one.folder, precision, device) for one in ready.others)]
    return FrozenMixture(every, [one.weight for one in recipe.teachers], recipe.losses.temperature, recipe.features_of)
