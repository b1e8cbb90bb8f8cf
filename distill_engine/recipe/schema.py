"""A recipe: everything that decides what is learnt. One frozen model per section, a sentence per field; a section lies
with those who take it (`config.py` of their room).

How it runs (ZeRO stage, precision, communication) belongs to the DeepSpeed JSON, not here.
Units are in the names. Unknown keys are errors.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from distill_engine.checkpoint.config import CheckpointSection
from distill_engine.data.config import BatchSection, DataSection
from distill_engine.engine.config import OptimizerSection
from distill_engine.losses.config import DecoderWeights, LossesSection
from distill_engine.recipe.section import Section
from distill_engine.rollouts.config import RolloutSection
from distill_engine.student.config import StudentSection
from distill_engine.teachers.config import TeacherSection, TeacherShare
from distill_engine.telemetry.config import LoggingSection
from distill_engine.train.config import ScheduleSection, StopSection, ValidationSection


class Recipe(Section):
    """One run, complete: the same recipe on the same machine gives the same student."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run folder and the W&B run.")
    seed: int = Field(1, ge=0, description="Seeds initial weights, dropout and data order.")
    teacher: TeacherSection = Field(default_factory=lambda: TeacherSection())
    teachers: list[TeacherShare] = Field(
        default_factory=list,
        description="Several teachers of one vocabulary, instead of teacher.path: the mean of their probabilities is "
        "imitated. The first is also the one whose layers are copied, and compared unless another says `features`.",
    )
    rollout: RolloutSection = Field(default_factory=lambda: RolloutSection())
    student: StudentSection = Field(default_factory=lambda: StudentSection())
    losses: LossesSection = Field(default_factory=lambda: LossesSection())
    data: DataSection
    batch: BatchSection = Field(default_factory=lambda: BatchSection())
    optimizer: OptimizerSection
    schedule: ScheduleSection = Field(default_factory=lambda: ScheduleSection())
    validation: ValidationSection = Field(default_factory=lambda: ValidationSection())
    stop: StopSection = Field(default_factory=lambda: StopSection())
    checkpoint: CheckpointSection = Field(default_factory=lambda: CheckpointSection())
    logging: LoggingSection = Field(default_factory=lambda: LoggingSection())

    @property
    def features_of(self) -> int:
        """The number of the teacher whose hidden states and attention are compared with."""
        return next((number for number, one in enumerate(self.teachers) if one.features), 0)

    @model_validator(mode="after")
    def _without_terms_of_a_frozen_encoder(self) -> Recipe:
        """They would be constants; what asks a recipe for its weights sees those that are left."""
        if self.student.encoder_is_frozen:
            left = self.losses.model_copy(update={"weights": DecoderWeights(self.losses.weights.root)})
            object.__setattr__(self, "losses", left)
        return self
