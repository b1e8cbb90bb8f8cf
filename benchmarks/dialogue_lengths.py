"""Datasets of the sizes of the four dialogue datasets, with examples of about their lengths and no words in them.

Episodes, examples and thus turns are those of the training splits. Lengths are a model: an utterance has a log-normal
number of tokens around the dataset's mean, the first text of an episode also what comes before it (persona, topic).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenised import TokenisedDataset, TokenLimits

LAYOUT = SequenceLayout(0, 1, 2, context_suffix=(2,), decoder_prefix=(1,))
LIMITS = TokenLimits(128, 128)
PARLAI_WEIGHTS = (1.0, 3.0, 3.0, 3.0)
_SPREAD = 0.55  # standard deviation of the logarithm of an utterance's tokens
_WORD = 5


@dataclass(frozen=True)
class Lengths:
    """Episodes and examples of a training split, mean tokens of an utterance and of what opens an episode."""

    episodes: int
    examples: int
    utterance: float
    opening: float


FOUR_DATASETS = {
    "blended_skill_talk": Lengths(4_819, 27_018, 18, 70),
    "wizard_of_wikipedia": Lengths(18_430, 74_092, 24, 4),
    "convai2:normalized": Lengths(17_878, 131_438, 14, 50),
    "empathetic_dialogues": Lengths(39_057, 64_636, 19, 0),
}


def four_datasets(share: float = 1.0, seed: int = 0) -> list[TokenisedDataset]:
    """The four datasets, or that share of their episodes."""
    random = np.random.default_rng(seed)
    return [_dataset(random, lengths, share) for lengths in FOUR_DATASETS.values()]


def _dataset(random: np.random.Generator, lengths: Lengths, share: float) -> TokenisedDataset:
    episodes = max(1, round(lengths.episodes * share))
    turns = 1 + random.poisson(lengths.examples / lengths.episodes - 1, episodes)
    first = np.concatenate([[0], np.cumsum(turns)[:-1]])
    texts, labels = _utterances(random, lengths, turns.sum()), _utterances(random, lengths, turns.sum())
    texts[first] += np.maximum(0, random.normal(lengths.opening, lengths.opening / 4, episodes)).astype(np.int64)
    ends = np.cumsum(texts + labels + 2)  # a delimiter of one token after each
    begins = ends - (texts + labels + 2)
    label_begins = begins + texts + 1
    bounds = np.stack([np.repeat(begins[first], turns), begins + texts, label_begins, label_begins + labels], axis=1)
    return TokenisedDataset(np.full(int(ends[-1]), _WORD, np.int32), bounds, LAYOUT, LIMITS)


def _utterances(random: np.random.Generator, lengths: Lengths, count: int) -> NDArray[np.int64]:
    drawn = random.lognormal(np.log(lengths.utterance) - _SPREAD**2 / 2, _SPREAD, count)
    return np.maximum(2, drawn).astype(np.int64)
