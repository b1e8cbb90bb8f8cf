"""The recipe's section on the optimizer. No torch: recipes and the launcher read it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distill_engine.recipe.section import Fraction, NonNegative, Positive, Section

Placement = Literal["zero3", "node", "replica", "offload"]  # of the teacher's weights


class OptimizerSection(Section):
    """How gradients become updates."""

    name: Literal["adam", "adamw", "sgd"] = Field("adamw", description="torch.optim name.")
    learning_rate: Positive = Field(description="Peak learning rate.")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="Adam's moment decay rates.")
    eps: Positive = Field(1e-8, description="Adam's denominator floor.")
    amsgrad: bool = Field(False, description="AMSGrad variant (what ParlAI's `adam` means).")
    weight_decay: NonNegative = Field(0.0, description="adamw: decoupled; adam, sgd: L2.")
    momentum: Fraction = Field(0.0, description="sgd only.")
    clip_norm: Positive | None = Field(0.1, description="Clip the global gradient norm to this; null: no clipping.")

    @property
    def moments(self) -> int:
        """Numbers that it keeps for each weight."""
        return int(self.momentum > 0) if self.name == "sgd" else 2 + int(self.amsgrad)
