"""The recipe's section on rollouts. No torch: recipes and the launcher read it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distill_engine.recipe.section import Positive, PositiveInt, Section, name_of


class RolloutSection(Section):
    """Whose text the student learns on."""

    source: Annotated[str, name_of("rollouts")] = Field("gold", description="`distill list rollouts` has the names.")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="student: share of micro-batches that are its own samples (lambda of GKD)."
    )
    temperature: Positive = Field(1.0, description="student: of its samples.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="student: samples are drawn from the most probable tokens that together have this probability."
    )
    new_tokens: PositiveInt | None = Field(
        None, description="student: tokens of a sample, at most; null: data.label_tokens. Fewer are cheaper."
    )
