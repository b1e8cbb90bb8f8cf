"""Replies to validation examples that metrics of texts are measured on, so that such a metric can decide.

The student is whole on every rank under ZeRO-2: the ranks share the batches, whose make-up and draws do not depend on
who answers them, and all get all replies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from distill_engine.cluster.ranks import Ranks
from distill_engine.evaluate.generate import GenerationError, own_settings
from distill_engine.evaluate.samples import Prompt, SampleReplies, answers, fixed_prompts
from distill_engine.metrics.replies import Answered, reply_values
from distill_engine.setup.prepare import Prepared


class MeasuredRepliesError(RuntimeError):
    """The student could not answer what validation.metric is measured on. Raised on all ranks."""


def measures_replies(ready: Prepared) -> bool:
    """Whether the recipe asks for them, and there is something to answer."""
    return ready.recipe.validation.generate_examples > 0 and bool(ready.valid_datasets)


class MeasuredReplies:
    """Answers the first examples of each dataset at each validation. Leaves weights, mode and random streams as they
    are."""

    def __init__(
        self, ready: Prepared, model: PreTrainedModel, ranks: Ranks, beat: Callable[[str], None] = lambda _doing: None
    ) -> None:
        """`model` is the student itself, without its engine; `beat` is told before each batch."""
        self._ready = ready
        self._model = model
        self._ranks = ranks
        self._beat = beat
        validation, tokenizer = ready.recipe.validation, ready.tokenizer
        size = validation.per_rank_batch or ready.recipe.batch.per_rank
        prompts = fixed_prompts(ready.valid_datasets, ready.valid_labels, tokenizer, validation.generate_examples)
        self._batches = [held[start : start + size] for held in prompts for start in range(0, len(held), size)]

    def __call__(self) -> dict[str, float]:
        """Values by name, without `valid/`, the same on all ranks. Collective; to be called in eval mode.

        Raises MeasuredRepliesError on all ranks if one of them cannot generate.
        """
        started = time.perf_counter()
        said, failure = {}, ""
        try:
            for number in range(self._ranks.rank, len(self._batches), self._ranks.world_size):
                said[number] = self._answers(number)
        except (GenerationError, RuntimeError) as error:  # RuntimeError: out of memory, probabilities that are NaN
            failure = " ".join(str(error).split())[:300]
        everybody = self._ranks.gather((said, failure))
        failures = {rank: reason for rank, (_, reason) in enumerate(everybody) if reason}
        if failures:
            raise MeasuredRepliesError(
                f"the student could not answer the validation examples that text metrics are measured on: {failures}. "
                "Lower validation.per_rank_batch if memory ran out, or set validation.generate_examples: 0 and a "
                "validation.metric of tokens."
            )
        per_dataset: dict[str, list[Answered]] = {label: [] for label in self._ready.valid_labels}
        found = {number: answered for of_rank, _ in everybody for number, answered in of_rank.items()}
        for number, batch in enumerate(self._batches):
            per_dataset[batch[0].dataset] += found[number]
        return reply_values(per_dataset) | {"reply_seconds": time.perf_counter() - started}

    def _answers(self, number: int) -> list[Answered]:
        batch: list[Prompt] = self._batches[number]
        self._beat(f"answering validation examples, batch {number + 1} of {len(self._batches)}")
        settings = own_settings(self._model, self._ready.recipe.data.label_tokens)
        said = answers(self._ready, self._model, [batch], settings, seed=number)
        return [Answered(one.text, one.tokens, [prompt.reference]) for one, prompt in zip(said, batch, strict=True)]


@dataclass(frozen=True)
class Replies:
    """What the loop calls at each validation, on all ranks: measured replies of all, then samples on rank 0."""

    measured: MeasuredReplies | None
    guard: SampleReplies | None

    def __call__(self, step: int, seconds: float) -> dict[str, float]:
        """Values by name, without `valid/`; those of rank 0 count."""
        values = {} if self.measured is None else self.measured()
        return values | ({} if self.guard is None else self.guard(step, seconds))
