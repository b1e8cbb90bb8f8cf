"""A teacher of one process, for commands that need no process group."""

from __future__ import annotations

from pathlib import Path

import torch

from distill_engine.evaluate.measure import load_model
from distill_engine.models.adapter import adapt
from distill_engine.teachers.columns import DTYPES
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
