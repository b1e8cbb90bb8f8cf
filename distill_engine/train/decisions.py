"""The decisions of a run, gathered: what the loop asks, and what of it a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distill_engine.train.learning_rate import LearningRate
from distill_engine.train.policies import EarlyStopping, Every, KeepBest
from distill_engine.train.progress import Limits


@dataclass
class Policies:
    """The decisions of a run; every one is a pure state machine that lives in the checkpoint."""

    learning_rate: LearningRate
    keep_best: KeepBest
    early_stopping: EarlyStopping
    log_when: Every
    validate_when: Every
    save_when: Every
    limits: Limits = field(default_factory=Limits)
    metric: str = "ppl"
    save_after_validation: bool = True

    def stateful(self) -> dict[str, Any]:
        """Those with a state, by the name of their part."""
        names = ("learning_rate", "keep_best", "early_stopping", "log_when", "validate_when", "save_when")
        return {name: getattr(self, name) for name in names}
