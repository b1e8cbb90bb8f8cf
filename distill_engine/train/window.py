"""One teacher pass for all micro-batches of an optimizer step (teacher.window).

The rows of all micro-batches become one batch, padded to the longest of them, and what the teacher shows of it is cut
into each micro-batch's own rows and lengths again. Padding lies to the right: no position that counts sees any of it,
so the features are those of separate passes, up to the rounding of another order of additions. Nothing is copied on
the way back: every part is a view, and all of the step's features live until its last micro-batch is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from distill_engine.train.validate import Shows
from distill_engine.values import (
    IGNORED_LABEL,
    AttentionKind,
    Batch,
    FeatureRequest,
    Features,
    Projected,
    QueryKey,
    Stack,
    Tokens,
)


def lessons_of(
    teacher: Shows | None,
    group: Sequence[Batch],
    request: FeatureRequest,
    at_once: bool,
    phase: Callable[[str], AbstractContextManager[None]],
) -> Iterator[Features | None]:
    """What the teacher shows of each micro-batch in turn: of all in one pass, or of each when it is asked for.

    None without a teacher. Keeps nothing that it has handed out: without `at_once` the features of one micro-batch are
    gone before those of the next are computed.
    """
    for part in [group] if at_once else [[batch] for batch in group]:
        if teacher is None:
            yield from [None] * len(part)
            continue
        with phase("teacher"):
            shown = features_of_each(teacher, part, request)
        while shown:
            yield shown.pop(0)


def features_of_each(teacher: Shows, group: Sequence[Batch], request: FeatureRequest) -> list[Features]:
    """What the teacher shows of each micro-batch, from one forward pass over all of them."""
    if len(group) == 1:
        return [teacher.features(group[0], request)]
    shown = teacher.features(joined(group), request)
    return list(_parts(shown, group))


def joined(group: Sequence[Batch]) -> Batch:
    """The rows of all micro-batches, [sum of B] of them, as long as the longest context and the longest label.

    Added positions hold token 0, which no attention that counts looks at, and no label.
    """
    return Batch(
        inputs=Tokens(
            _stacked([batch.inputs.input_ids for batch in group], 0),
            _stacked([batch.inputs.attention_mask for batch in group], 0),
        ),
        decoder_input_ids=_stacked([batch.decoder_input_ids for batch in group], 0),
        labels=_stacked([batch.labels for batch in group], IGNORED_LABEL),
        example_ids=torch.cat([batch.example_ids for batch in group]),
        dataset_ids=torch.cat([batch.dataset_ids for batch in group]),
    )


def _stacked(parts: Sequence[Tensor], filling: int) -> Tensor:
    longest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, longest - part.shape[1]), value=filling) for part in parts])


def _parts(shown: Features, group: Sequence[Batch]) -> Iterator[Features]:
    first = 0
    for batch in group:
        rows = slice(first, first + len(batch))
        first = rows.stop
        yield _part(shown, rows, {Stack.ENCODER: batch.inputs.length, Stack.DECODER: batch.labels.shape[1]})


def _part(shown: Features, rows: slice, lengths: dict[Stack, int]) -> Features:
    """The features of some rows, cut to the lengths of the micro-batch that they came from."""
    context, label = lengths[Stack.ENCODER], lengths[Stack.DECODER]
    head = shown.head
    return Features(
        logits=None if shown.logits is None else shown.logits[rows, :label],
        head=None if head is None else replace(head, hidden=head.hidden[rows, :label]),
        encoder_output=None if shown.encoder_output is None else _cut(shown.encoder_output, rows, context),
        embeddings={stack: _cut(states, rows, lengths[stack]) for stack, states in shown.embeddings.items()},
        hidden={(stack, n): _cut(states, rows, lengths[stack]) for (stack, n), states in shown.hidden.items()},
        attention={(kind, n): _scores(pair, kind, rows, lengths) for (kind, n), pair in shown.attention.items()},
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
