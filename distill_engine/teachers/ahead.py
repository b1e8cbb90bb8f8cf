"""A teacher whose pass of the next micro-batch is begun before the student works on this one (teacher.overlap).

On a GPU the pass goes to a stream of its own, where it fills what the student leaves free: gaps between small kernels,
waits for gradients of other ranks, the optimizer's step. The order of passes stays, so the features are the same bits.

Two waits make it safe, and nothing has to be said to the allocator (`record_stream`):

    before a pass      the side stream waits for all that was asked of the main one: the batch is copied there, and
                       features that were let go meanwhile, whose memory this pass may take, are no longer read
    before its use     the main stream waits for the pass; only then is its batch, memory of the main one, let go

Features are read on the main stream alone, by kernels that were asked for before the last reference to them went. And
a pass leaves nothing else behind: what a batch or a model kept of it could be read on the main stream too early.
Only for a teacher that every rank has whole: gathers of shards would come between the student's reductions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_engine.teachers.protocol import Teacher
from distill_engine.values import Batch, FeatureRequest, Features


@dataclass(frozen=True)
class _Begun:
    """A pass that was begun: of which batch (its labels stand for it) and request; `done`: when it has ended."""

    labels: Tensor
    request: FeatureRequest
    features: Features
    done: torch.cuda.Event | None


class AheadTeacher(Teacher):
    """Another teacher, one micro-batch ahead, into the next optimizer step too."""

    def __init__(self, teacher: Teacher, upcoming: Callable[[], Batch | None], device: torch.device) -> None:
        """`upcoming`: the first micro-batch of the step after this one, on the device, or None. On a CPU there is no
        stream, and only the order is another."""
        self.provides, self.identity, self.engine = teacher.provides, teacher.identity, teacher.engine
        self._teacher = teacher
        self._upcoming = upcoming
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._begun: _Begun | None = None

    def features(self, group: Sequence[Batch], request: FeatureRequest) -> Iterator[Features]:
        """As the protocol says; those of the next micro-batch are on their way meanwhile."""
        for number, batch in enumerate(group):
            found = [self._of(batch, request)]
            coming = group[number + 1] if number + 1 < len(group) else self._upcoming()
            self._begun = None if coming is None else self._begin(coming, request)
            yield found.pop()  # nothing here keeps it

    def _of(self, batch: Batch, request: FeatureRequest) -> Features:
        begun, self._begun = self._begun, None
        if begun is None:
            return next(self._teacher.features([batch], request))
        if begun.done is not None:
            torch.cuda.current_stream().wait_event(begun.done)
        if begun.labels is batch.labels and begun.request == request:
            return begun.features
        return next(self._teacher.features([batch], request))  # another order than was foreseen, after a resume

    def _begin(self, batch: Batch, request: FeatureRequest) -> _Begun:
        if self._side is None:
            return _Begun(batch.labels, request, next(self._teacher.features([batch], request)), None)
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            features = next(self._teacher.features([batch], request))
            return _Begun(batch.labels, request, features, self._side.record_event())
