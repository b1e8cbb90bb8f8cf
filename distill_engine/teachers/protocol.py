"""What a teacher is to a run, wherever its outputs come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch

from distill_engine.values import Batch, FeatureRequest, Features

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Engine(Protocol):
    """A frozen model in memory (engine.teacher)."""

    @property
    def model(self) -> Any:
        """The model itself, to generate with. Collective like `features`."""

    def features(self, batch: Batch, request: FeatureRequest) -> Features:
        """One forward pass, without gradients."""
        ...


class Teacher:
    """Gives the teacher's features of micro-batches. So small that weights in memory, files and servers all fit.

    The training loop asks once per optimizer step with the micro-batches of that step, the validator once per batch.
    Both do so on every rank, at the same moment, with the same request: `features` may be collective.

    provides  names of FeatureRequest's fields that it can answer; the run is refused where the recipe needs others
    identity  JSON values; a checkpoint is taken up only by a run whose teacher has the same ones
    engine    the model in memory, if there is one: it also answers sample prompts
    """

    provides: frozenset[str] = frozenset(FeatureRequest.__dataclass_fields__)
    identity: Mapping[str, Any] = NOTHING
    engine: Engine | None = None

    def features(self, group: Sequence[Batch], request: FeatureRequest) -> Iterator[Features]:
        """One item per micro-batch, in order, without gradients; computed when it is asked for.

        Keeps no item that it has handed out, so that the caller alone decides how long one lives.
        """
        raise NotImplementedError

    def lacking(self, request: FeatureRequest) -> list[str]:
        """Names of what is requested and not provided."""
        asked = [name for name in FeatureRequest.__dataclass_fields__ if getattr(request, name)]
        return [name for name in asked if name not in self.provides]


@dataclass(frozen=True)
class MadeOf:
    """What a run's teacher and data are known by.

    teacher   digest of configuration and weights
    datasets  title -> digest of the token ids of all of its examples, as the models read them
    """

    teacher: str
    datasets: Mapping[str, str]


@dataclass(frozen=True)
class TeacherParts:
    """What a run has for a teacher to be made of.

    folder      of the teacher's files: config.json, tokenizer, and the weights, which a source may leave unread
    load        makes the engine that holds the model, as teacher.placement says; collective, and takes long
    window      teacher.window
    vocabulary  tokens of the teacher's output
    dtype       the models' in this run
    cache       teacher.cache
    made_of     of this run; collective, and reads the teacher's weights where their digest is not remembered
    others      weight of each further teacher, and what loads it as `load` does; `weight` is the first one's
    temperature of the losses
    features_of number of the teacher whose hidden states and attention are compared with, 0 is the first
    """

    folder: Path
    load: Callable[[], Engine]
    window: bool
    vocabulary: int
    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype
    cache: Path | None
    made_of: Callable[[], MadeOf]
    weight: float = 1.0
    others: Sequence[tuple[float, Callable[[], Engine]]] = ()
    temperature: float = 1.0
    features_of: int = 0


class Source(Protocol):
    """What a name of teacher.source stands for; meaning: a line for `distill list teachers`.

    A run that needs a teacher calls `open` once, on all ranks, after the student was built. A teacher with `state_dict`
    and `load_state_dict` goes with the checkpoints (part `teacher`).
    """

    meaning: ClassVar[str]

    def open(self, parts: TeacherParts) -> Teacher:
        """The teacher of this run."""
        ...
