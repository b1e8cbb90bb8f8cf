"""The recipe's section on checkpoints. No torch: recipes and the launcher read it."""

from __future__ import annotations

from pydantic import Field

from distill_engine.recipe.section import Positive, PositiveInt, Section


class CheckpointSection(Section):
    """Resuming. Checkpoints are complete or absent, never half-written."""

    every_steps: PositiveInt | None = Field(None, description="Also save every N applied optimizer steps.")
    every_seconds: Positive | None = Field(None, description="Also save every N seconds.")
    keep_last: PositiveInt = Field(2, description="The newest N checkpoints stay; the last is what a restart uses.")
    keep_best: int = Field(0, ge=0, description="So do those of the best N validations by validation.metric.")
    keep_every: PositiveInt | None = Field(None, description="And the first at or after every N steps, for good.")
    background: bool = Field(
        True,
        description="Write while training goes on, from a copy in host memory (as large as the rank's part of the "
        "checkpoint); false: steps wait until it is written.",
    )
