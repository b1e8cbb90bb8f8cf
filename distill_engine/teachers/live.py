"""A teacher that is in memory: a forward pass per micro-batch, or one for all of an optimizer step (teacher.window).

In a window the rows of all micro-batches become one batch, padded to the longest of them, and the features are cut into
each micro-batch's own rows and lengths again. Padding lies to the right: no position that counts sees any of it,
so the features are those of separate passes, up to the rounding of another order of additions. Nothing is copied on
the way back: every part is a view, and all of the step's features live until its last micro-batch is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from distill_engine.teachers.mixture import Mixture
from distill_engine.teachers.protocol import Engine, Teacher, TeacherParts
from distill_engine.values import (
    IGNORED_LABEL,
    AttentionKind,
    Batch,
    FeatureRequest,
    Features,
    Projected,
    QueryKey,
    Stack,
    stacked,
)


class LiveTeacher(Teacher):
    """The model in memory; it provides everything."""

    def __init__(self, engine: Engine, *, window: bool = False) -> None:
        """`window`: one pass for all micro-batches of a step."""
        self.engine: Engine = engine
        self._window = window

    def features(self, group: Sequence[Batch], request: FeatureRequest) -> Iterator[Features]:
        """As the protocol says; without a window those of one micro-batch may be gone before the next are computed."""
        if not self._window or len(group) == 1:
            for batch in group:
                yield self.engine.features(batch, request)
            return
        parts = list(_parts(self.engine.features(joined(group), request), group))
        while parts:
            yield parts.pop(0)


class Live:
    """teacher.source: live."""

    meaning: ClassVar[str] = "the model itself, in memory as teacher.placement says; or several (`teachers`)"

    def open(self, parts: TeacherParts) -> Teacher:
        """Load it, or all of them."""
        first = LiveTeacher(parts.load(), window=parts.window)
        if not parts.others:
            return first
        weights = [parts.weight, *(weight for weight, _ in parts.others)]
        others = [LiveTeacher(load(), window=parts.window) for _, load in parts.others]
        return Mixture([first, *others], weights, parts.temperature, parts.features_of)


LIVE = Live()


def joined(group: Sequence[Batch]) -> Batch:
    """The rows of all micro-batches, [sum of B] of them, as long as the longest context and the longest label.

    Added positions hold token 0, which no attention that counts looks at, and no label.
    """
    first, *others = (batch.inputs for batch in group)
    return Batch(
        inputs=first.beside(others),  # type: ignore[arg-type]  # all are of the run's one kind
        decoder_input_ids=stacked([batch.decoder_input_ids for batch in group], 0),
        labels=stacked([batch.labels for batch in group], IGNORED_LABEL),
        example_ids=torch.cat([batch.example_ids for batch in group]),
        dataset_ids=torch.cat([batch.dataset_ids for batch in group]),
    )


def _parts(features: Features, group: Sequence[Batch]) -> Iterator[Features]:
    first = 0
    for batch in group:
        rows = slice(first, first + len(batch))
        first = rows.stop
        yield _part(features, rows, {Stack.ENCODER: batch.inputs.length, Stack.DECODER: batch.labels.shape[1]})


def _part(features: Features, rows: slice, lengths: dict[Stack, int]) -> Features:
    """The features of some rows, cut to the lengths of the micro-batch that they came from."""
    context, label = lengths[Stack.ENCODER], lengths[Stack.DECODER]
    head = features.head
    return Features(
        logits=None if features.logits is None else features.logits[rows, :label],
        head=None if head is None else replace(head, hidden=head.hidden[rows, :label]),
        encoder_output=None if features.encoder_output is None else _cut(features.encoder_output, rows, context),
        embeddings={stack: _cut(states, rows, lengths[stack]) for stack, states in features.embeddings.items()},
        hidden={(stack, n): _cut(states, rows, lengths[stack]) for (stack, n), states in features.hidden.items()},
        attention={(kind, n): _scores(pair, kind, rows, lengths) for (kind, n), pair in features.attention.items()},
    )


def _cut(states: Tensor | Projected, rows: slice, length: int) -> Tensor:
    assert isinstance(states, Tensor), "a teacher's states are not projected"
    return states[rows, :length]


def _scores(pair: QueryKey, kind: AttentionKind, rows: slice, lengths: dict[Stack, int]) -> QueryKey:
    """Queries are of the stack that asks; keys are the decoder's in its own attention, else the encoder's."""
    keys = Stack.DECODER if kind is AttentionKind.DECODER_SELF else Stack.ENCODER
    asking, asked = lengths[kind.query_stack], lengths[keys]
    bias = None if pair.bias is None else pair.bias[:, :asking, :asked]
    return QueryKey(pair.query[rows, :, :asking], pair.key[rows, :, :asked], pair.scale, bias)
