"""The recipe's section on who hears about a run. No torch: recipes and the launcher read it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distill_engine.recipe.section import PositiveInt, Section

WandbMode = Literal["auto", "online", "offline", "disabled"]


class WandbSection(Section):
    """Weights & Biases. The key comes from the environment or ~/.netrc, never from here."""

    mode: WandbMode = Field("auto", description="auto: online when a key is found, else offline.")
    project: str = Field("distill", description="W&B project.")
    entity: str | None = Field(None, description="W&B team or user.")
    group: str | None = Field(None, description="Groups the runs of a sweep.")
    tags: list[str] = Field(default_factory=list)


class LoggingSection(Section):
    """Who hears about it."""

    every_steps: PositiveInt = Field(10, description="Log training metrics every N applied optimizer steps.")
    gradient_norm_every_steps: int = Field(
        200,
        ge=0,
        description="Measure the gradient norm of every loss term at one step in N; 0: never. It costs a backward pass "
        "per term and an all-reduce of each term's fp32 gradient: for the 3B recipe 9 times 4.8 GB, 43 GB together. At "
        "200 that is about 3 % of the time between nodes of eight 400 Gbit/s cards, more than 10 % with one card.",
    )
    wandb: WandbSection = Field(default_factory=lambda: WandbSection())
