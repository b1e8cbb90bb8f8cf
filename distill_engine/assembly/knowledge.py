"""Refuses a teacher that knows nothing of the data before anything is learnt from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from distill_engine.data.order.collate import Picks
from distill_engine.data.order.loader import picked_batch
from distill_engine.evaluate.measure import labels_alone, measured
from distill_engine.evaluate.teacher_doubts import chance
from distill_engine.metrics.tally import Tally
from distill_engine.recipe.problem import Problem, RecipeError
from distill_engine.recipe.schema import Recipe
from distill_engine.setup.prepare import Prepared
from distill_engine.teachers.protocol import Engine
from distill_engine.values import Batch

_BATCHES = 8  # of two examples: a forward pass of the teacher each, at every start; more where datasets or tokens ask
_MOST_BATCHES = 32  # for the sake of tokens
_FEWEST_TOKENS = 32  # with fewer a loss says little


def gold_batches(ready: Prepared) -> Iterator[Batch]:
    """A few examples of every dataset, the first ones of each first: of validation where there is one.

    More than `_BATCHES` where there are more datasets, or where labels are so short that these hold few tokens.
    """
    datasets = ready.valid_datasets or ready.train_datasets
    longest = max(map(len, datasets))
    turns = ((number, row) for row in range(longest) for number, held in enumerate(datasets) if row < len(held))
    least, tokens = max(_BATCHES, -(-len(datasets) // 2)), 0
    for count in range(max(least, _MOST_BATCHES)):
        two = np.array(list(islice(turns, 2)), np.int64).reshape(-1, 2)
        if len(two) == 0 or (count >= least and tokens >= _FEWEST_TOKENS):
            return
        batch = picked_batch(datasets, Picks(two[:, 0], two[:, 1]), ready.layout, ready.recipe.batch.pad_to_multiple_of)
        tokens += int(batch.label_mask.sum())
        yield batch


def require_knowledge(
    teacher: Engine, batches: Iterable[Batch], recipe: Recipe, key: str, folder: Path, agreed: Callable[[float], float]
) -> None:
    """Compare the teacher's mean loss of a label token with chance. Collective: the same batches on every rank, and the
    numbers of rank 0 (`agreed`). `key`: where the recipe names the teacher.

    Raises RecipeError where it is no better. A loss that is not finite is the probe's affair.
    """
    total, tokens, vocabulary = 0.0, 0, 0
    for batch in batches:
        datasets = 1 + int(batch.dataset_ids.max())
        found = measured({key: teacher.features}, None, batch, labels_alone(), Tally(), datasets)[key]
        total += float(found.scores.loss.sum())
        tokens += int(found.scores.tokens.sum())
        vocabulary = found.vocabulary
    total = agreed(total)  # other hardware rounds otherwise
    if tokens < _FEWEST_TOKENS or not math.isfinite(total) or total / tokens <= chance(vocabulary):
        return
    ppl = math.exp(min(total / tokens, 700.0))
    what = (
        f"is {folder}, whose perplexity on {tokens} gold label tokens is {ppl:.4g}: no better than chance "
        f"among its {vocabulary} tokens"
    )
    fix = (
        "Look whether the weights are those that it was trained to, and data.tokenizer, languages and special tokens "
        "those that it was trained with; or set teacher.allow_noise: true to learn from it all the same"
    )
    raise RecipeError(recipe.name, [Problem(key, what, "Nothing is learnt from noise", fix)])
