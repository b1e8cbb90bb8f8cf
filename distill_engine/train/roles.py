"""What the training loop asks of the parts that it drives: the shapes of engine, data and telemetry as it sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from distill_engine.checkpoint.parts import Part
from distill_engine.cluster import ranks
from distill_engine.train.decisions import Quantizable
from distill_engine.values import Batch, FeatureRequest, Features


class Ranks(ranks.Ranks, Protocol):
    """The process group, as the loop sees it."""

    device: torch.device

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise sum over ranks."""
        ...

    def agree(self, step: int, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether any rank wants to stop, and rank 0's clock; raises if ranks are at different steps."""
        ...


class Evaluates(Protocol):
    """A model that gives features (an engine, or a plain adapter in evaluation)."""

    def features(self, batch: Batch, request: FeatureRequest) -> Features:
        """One forward pass."""
        ...


class Student(Evaluates, Quantizable, Part, Protocol):
    """The engine that trains (engine.student)."""

    def train(self) -> None:
        """Dropout on."""
        ...

    def eval(self) -> None:
        """Dropout off."""
        ...

    def backward(self, total: Tensor) -> None:
        """Backward of one micro-batch."""
        ...

    def step(self, learning_rate: float) -> Any:
        """Update; see engine.student.StepOutcome."""
        ...

    def advice(self) -> str:
        """What to do when every step is skipped."""
        ...


class Batches(Protocol):
    """The endless training data of this rank (data.loader)."""

    @property
    def examples(self) -> int:
        """Examples handed out so far, all ranks and micro-batches together."""
        ...

    @property
    def epoch(self) -> float:
        """Epochs handed out so far."""
        ...

    def next_group(self) -> list[Batch]:
        """The micro-batches of one optimizer step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Global position."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position."""
        ...


class Sinks(Protocol):
    """Where metrics go (telemetry.sinks)."""

    def record(self, kind: Any, step: int, seconds: float, values: dict[str, float], text: str = "") -> None:
        """Write one record everywhere."""
        ...

    def phase(self, name: str) -> None:
        """Show what the run does now."""
        ...

    def advance(self, step: int, until_validation: str | None = None, eta_seconds: float | None = None) -> None:
        """Show progress."""
        ...

    def message(self, text: str) -> None:
        """Tell a person."""
        ...

    def rewind(self, step: int) -> None:
        """Forget records of later steps."""
        ...
