"""The recipe's sections on teachers. No torch: recipes and the launcher read it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill_engine.engine.config import Placement
from distill_engine.recipe.section import Positive, Section, name_of


class TeacherSection(Section):
    """The model that is imitated. It is never trained."""

    path: str | None = Field(None, description="Folder or Hugging Face name; null: train without a teacher.")
    revision: str | None = Field(None, description="Commit or tag of a Hugging Face name; pin it for long runs.")
    source: Annotated[str, name_of("teachers")] = Field(
        "live", description="Where its outputs come from; `distill list teachers` has the names."
    )
    cache: str | None = Field(
        None, description="source: cache: the folder that `distill cache` wrote; path remains the teacher it is of."
    )
    placement: Literal["auto"] | Placement = Field(
        "auto",
        description="Where its weights live. auto: a replica on one rank, else zero3. "
        "zero3: shards over all ranks; node: shards over each node's ranks, so "
        "no byte of it crosses the network; replica: a copy on every rank; offload: shards in host memory.",
    )
    window: bool = Field(
        False,
        description="One teacher pass for all micro-batches of an optimizer step: layers are gathered once per step "
        "instead of once per micro-batch, and its features of the whole step are held at a time.",
    )
    overlap: bool = Field(
        False,
        description="On a GPU, with placement replica: its pass of the next micro-batch is begun before the student "
        "works on this one, on a stream of its own; the features of two micro-batches are held.",
    )
    allow_noise: bool = Field(
        False,
        description="Begin although the teacher predicts gold labels no better than chance (perplexity above half its "
        "vocabulary): random weights, as tests have them.",
    )


class TeacherShare(Section):
    """One of several teachers, whose probabilities are averaged."""

    path: str = Field(description="Folder or Hugging Face name.")
    revision: str | None = Field(None, description="Commit or tag of a Hugging Face name.")
    weight: Positive = Field(1.0, description="Its share of the mean, relative to the others'.")
    features: bool = Field(
        False, description="Hidden states and attention are compared with this one's; default: the first one's."
    )
