"""Examples to one batch: right-padded texts, or windows of sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from distill_engine.data.tokens.layout import SequenceLayout, Window
from distill_engine.data.tokens.tokenised import Example, TokenLimits
from distill_engine.values import IGNORED_LABEL, Audio, Batch, Tokens


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
    """The examples as one batch of [B, S] contexts, or windows of sound where the layout has one, and [B, T] labels.

    Contexts and labels are as long as their longest, rounded up to `pad_to_multiple_of`. As in ParlAI the labels are
    rounded before the layout's leading positions come in front, so T is `layout.label_pad_prefix` above a multiple.
    Padding never goes beyond `limits`, for which the position tables were checked. `picks` says which examples they
    are; without it they are numbers 0, 1, ... of dataset 0.
    """
    rows = len(examples)
    length = rounded_up(max(len(example.label_ids) for example in examples), pad_to_multiple_of)
    length = length if limits is None else min(length, limits.label)
    labels = np.full((rows, layout.decoder_length(length)), IGNORED_LABEL, np.int64)
    decoder_inputs = np.full(labels.shape, layout.pad_id, np.int64)
    for row, example in enumerate(examples):
        labels[row, layout.label_pad_prefix :][: len(example.label_ids)] = example.label_ids
        prompt = example.prompt or layout.decoder_prefix
        assert len(prompt) == len(layout.decoder_prefix), (prompt, layout)
        decoder_input = np.concatenate([prompt, example.label_ids[:-1]])
        decoder_inputs[row, : len(decoder_input)] = decoder_input
    datasets, numbers = picks or (np.zeros(rows, np.int64), np.arange(rows))
    if layout.window is None:
        inputs: Tokens | Audio = _read(examples, layout.pad_id, pad_to_multiple_of, limits)
    else:
        inputs = _heard(np.stack([_features(example, layout.window) for example in examples]), layout.window)
    return _batch(inputs, decoder_inputs, labels, numbers, datasets)


def _read(examples: Sequence[Example], pad_id: int, pad_to_multiple_of: int, limits: TokenLimits | None) -> Tokens:
    """The contexts of some examples."""
    length = rounded_up(max(len(example.context_ids) for example in examples), pad_to_multiple_of)
    length = length if limits is None else min(length, limits.context)
    contexts = np.full((len(examples), length), pad_id, np.int64)
    mask = np.zeros_like(contexts)
    for row, example in enumerate(examples):
        contexts[row, : len(example.context_ids)] = example.context_ids
        mask[row, : len(example.context_ids)] = 1
    return Tokens(torch.from_numpy(contexts), torch.from_numpy(mask))


def _features(example: Example, window: Window) -> NDArray[np.float32]:
    """[C, F] of an example's clip. Raises DataError as the clip does."""
    assert example.clip is not None, "a family that hears reads clips (recipe.data_rules)"
    features = example.clip.features()
    assert features.shape == (window.channels, window.frames), (features.shape, window)
    return features


def _heard(features: NDArray[np.float32], window: Window) -> Audio:
    """Every position counts, the silence that fills a window up as well: encoders of windows attend to it."""
    mask = np.ones((len(features), window.positions), np.int64)
    return Audio(torch.from_numpy(features), torch.from_numpy(mask))


def filler_batch(layout: SequenceLayout) -> Batch:
    """A batch of one row that counts for nothing: no label is predicted, but attention has a position to look at.

    For a rank that has no example left while the others have, and must still take part in collective calls.
    """
    decoder_input = np.array([layout.decoder_prefix], np.int64)
    labels = np.full(decoder_input.shape, IGNORED_LABEL, np.int64)
    if layout.window is None:
        context = torch.tensor([[layout.end_id]])
        inputs: Tokens | Audio = Tokens(context, torch.ones_like(context))
    else:
        inputs = _heard(np.zeros((1, layout.window.channels, layout.window.frames), np.float32), layout.window)
    return _batch(inputs, decoder_input, labels, np.array([-1]), np.zeros(1, np.int64))


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, which a GPU reads while the processor goes on. Needs a GPU."""
    return batch.each(lambda tensor: tensor.pin_memory())


def rounded_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def _batch(
    inputs: Tokens | Audio,
    decoder_inputs: NDArray[np.int64],
    labels: NDArray[np.int64],
    example_ids: NDArray[np.int64],
    dataset_ids: NDArray[np.int64],
) -> Batch:
    read, said, examples, datasets = map(torch.from_numpy, (decoder_inputs, labels, example_ids, dataset_ids))
    return Batch(inputs, read, said, examples, datasets)
