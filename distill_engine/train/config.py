"""The recipe's sections on the learning rate, validations and limits. No torch: recipes and the launcher read it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill_engine.metrics.named import better
from distill_engine.recipe.section import Fraction, NonNegative, Positive, PositiveInt, Section
from distill_engine.train.progress import EndReason, Progress


class ScheduleSection(Section):
    """How the learning rate moves, counted in applied optimizer steps."""

    name: Literal["constant", "linear", "cosine", "reduce_on_plateau"] = Field("constant")
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up from warmup_start * learning_rate.")
    warmup_start: Fraction = Field(1e-4, description="Share of the learning rate at the first warm-up step.")
    total_steps: PositiveInt | None = Field(None, description="linear, cosine: where they end; null: stop.max_steps.")
    final_share: Fraction = Field(0.0, description="linear, cosine: share of the learning rate at the end.")
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="reduce_on_plateau: factor of a drop.")
    patience: int = Field(3, ge=0, description="reduce_on_plateau: bad validations before a drop.")
    threshold: NonNegative = Field(1e-4, description="reduce_on_plateau: relative improvement that counts.")


class ValidationSection(Section):
    """When the student is measured, and what the numbers decide. Whichever trigger fires first wins."""

    every_steps: PositiveInt | None = Field(None, description="Validate every N applied optimizer steps.")
    every_epochs: Positive | None = Field(None, description="Validate every N epochs of training examples.")
    every_seconds: Positive | None = Field(None, description="Validate every N seconds (agreed across ranks).")
    metric: str = Field("ppl", description="Metric that decides best and patience; see docs/metrics.md.")
    average: Literal["macro", "micro"] = Field(
        "macro",
        description="What ppl, loss and the like are over several datasets. macro: mean of their values, as ParlAI; "
        "micro: of all tokens together (ParlAI's --aggregate-micro).",
    )
    direction: Literal["min", "max"] | None = Field(
        None, description="Which way is better; null: as the metric says. Needed where it says neither."
    )
    generate_examples: int = Field(
        0,
        ge=0,
        description="The first N examples of each dataset are answered at each validation, with the model's own "
        "generation settings, and all metrics of texts (distill list metrics) are measured. 0: none.",
    )
    patience: int | None = Field(20, gt=0, description="Stop after N validations without improvement; null: never.")
    stop_at: float | None = Field(None, description="Stop once the metric is at least this good.")
    per_rank_batch: PositiveInt | None = Field(None, description="Validation batch on one rank; null: batch.per_rank.")
    samples: int = Field(
        4,
        ge=0,
        description="The first N validation examples of each dataset are answered at each validation, with the model's "
        "own generation settings: a table beside the teacher's replies (made once, before the first step: a teacher "
        "pass per token), and an alarm if replies degenerate. 0: none.",
    )
    save_after_validation: bool = Field(True, description="Write a checkpoint after each validation.")

    @property
    def better(self) -> Literal["min", "max"]:
        """Which way the metric is better: the direction that is given, or the metric's own."""
        own = better(self.metric)
        return self.direction or ("max" if own == "max" else "min")


class StopSection(Section):
    """Limits of a run; null means no limit."""

    max_steps: PositiveInt | None = Field(None, description="Applied optimizer steps.")
    max_epochs: Positive | None = Field(None, description="Passes over the training examples.")
    max_seconds: Positive | None = Field(None, description="Seconds of training, summed over restarts.")
    max_skipped_steps: PositiveInt = Field(100, description="Give up after N skipped steps (overflow, NaN) in a row.")
    hang_seconds: Positive | None = Field(
        1800.0,
        description="A rank without progress for so long writes where it stands (hang/ in the run folder) and ends "
        "with code 75, to be started again. More than one part of a checkpoint takes to read or write; null: never.",
    )

    def reached(self, progress: Progress, epoch: float) -> EndReason | None:
        """The first limit that is reached."""
        if self.max_steps is not None and progress.steps >= self.max_steps:
            return EndReason.MAX_STEPS
        if self.max_epochs is not None and epoch >= self.max_epochs:
            return EndReason.MAX_EPOCHS
        if self.max_seconds is not None and progress.seconds >= self.max_seconds:
            return EndReason.MAX_SECONDS
        return None

    def last(self, step: int, epoch: float) -> bool:
        """Whether this step, if it is applied, is known to be the last when `epoch` epochs are handed out with it."""
        by_steps = self.max_steps is not None and step >= self.max_steps
        return by_steps or (self.max_epochs is not None and epoch >= self.max_epochs)

    def seconds_left(self, progress: Progress) -> float | None:
        """Until max_steps, at the pace so far; None without such a limit or a pace."""
        if self.max_steps is None or not progress.steps:
            return None
        return (self.max_steps - progress.steps) * progress.seconds / progress.steps
