"""Examples to one right-padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenised import Example, TokenLimits
from distill_engine.values import IGNORED_LABEL, Batch, Tokens


class Picks(NamedTuple):
    """The examples of one micro-batch: datasets [B] and numbers of examples within them [B]."""

    datasets: NDArray[np.int64]
    examples: NDArray[np.int64]


def collate(
    examples: Sequence[Example],
    layout: SequenceLayout,
    pad_to_multiple_of: int,
    limits: TokenLimits | None = None,
    picks: Picks | None = None,
) -> Batch:
    """The examples as one batch of [B, S] contexts and [B, T] labels.

    Contexts and labels are as long as their longest, rounded up to `pad_to_multiple_of`. As in ParlAI the labels are
    rounded before the layout's leading positions come in front, so T is `layout.label_pad_prefix` above a multiple.
    Padding never goes beyond `limits`, for which the position tables were checked. `picks` says which examples they
    are; without it they are numbers 0, 1, ... of dataset 0.
    """
    context_length = rounded_up(max(len(example.context_ids) for example in examples), pad_to_multiple_of)
    label_length = rounded_up(max(len(example.label_ids) for example in examples), pad_to_multiple_of)
    if limits is not None:
        context_length, label_length = min(context_length, limits.context), min(label_length, limits.label)
    rows = len(examples)
    contexts = np.full((rows, context_length), layout.pad_id, np.int64)
    mask = np.zeros((rows, context_length), np.int64)
    labels = np.full((rows, layout.decoder_length(label_length)), IGNORED_LABEL, np.int64)
    decoder_inputs = np.full(labels.shape, layout.pad_id, np.int64)
    for row, example in enumerate(examples):
        contexts[row, : len(example.context_ids)] = example.context_ids
        mask[row, : len(example.context_ids)] = 1
        labels[row, layout.label_pad_prefix :][: len(example.label_ids)] = example.label_ids
        decoder_input = np.concatenate([layout.decoder_prefix, example.label_ids[:-1]])
        decoder_inputs[row, : len(decoder_input)] = decoder_input
    datasets, numbers = picks or (np.zeros(rows, np.int64), np.arange(rows))
    return _batch(contexts, mask, decoder_inputs, labels, numbers, datasets)


def filler_batch(layout: SequenceLayout) -> Batch:
    """A batch of one row that counts for nothing: no label is predicted, but attention has a token to look at.

    For a rank that has no example left while the others have, and must still take part in collective calls.
    """
    context = np.array([[layout.end_id]], np.int64)
    decoder_input = np.array([layout.decoder_prefix], np.int64)
    labels = np.full(decoder_input.shape, IGNORED_LABEL, np.int64)
    return _batch(context, np.ones_like(context), decoder_input, labels, np.array([-1]), np.zeros(1, np.int64))


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, which a GPU reads while the processor goes on. Needs a GPU."""
    return batch.each(lambda tensor: tensor.pin_memory())


def rounded_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def _batch(
    contexts: NDArray[np.int64],
    mask: NDArray[np.int64],
    decoder_inputs: NDArray[np.int64],
    labels: NDArray[np.int64],
    example_ids: NDArray[np.int64],
    dataset_ids: NDArray[np.int64],
) -> Batch:
    inputs = Tokens(torch.from_numpy(contexts), torch.from_numpy(mask))
    return Batch(inputs, *(torch.from_numpy(part) for part in (decoder_inputs, labels, example_ids, dataset_ids)))
