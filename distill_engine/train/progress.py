"""How far a run is, and when it ends: plain numbers that live in the checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class EndReason(str, Enum):
    """Why a run ended."""

    MAX_STEPS = "max_steps"
    MAX_EPOCHS = "max_epochs"
    MAX_SECONDS = "max_seconds"
    OUT_OF_PATIENCE = "out_of_patience"
    TARGET_REACHED = "target_reached"
    STOP_REQUESTED = "stop_requested"  # by a signal: not done, to be continued


@dataclass
class Progress:
    """Counts of a run over all its restarts.

    steps             optimizer steps that changed the weights; everything is scheduled by these
    skipped_steps     steps that the loss scaler or a non-finite gradient turned into nothing
    skipped_in_a_row  of these, since the last applied one
    seconds           training time agreed across ranks
    """

    steps: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0

    @property
    def attempts(self) -> int:
        """Optimizer steps that were tried."""
        return self.steps + self.skipped_steps

    def count_step(self, applied: bool) -> None:
        """Count one attempt."""
        if applied:
            self.steps += 1
            self.skipped_in_a_row = 0
        else:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        for name in asdict(self):
            setattr(self, name, state[name])
