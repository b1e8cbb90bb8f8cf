"""The degeneration guard: what the student says to a few fixed prompts at each validation.

A falling loss proves little about free generation: a student may repeat itself, say nothing, or never stop, at the
best perplexity so far. So it answers the first validation examples of each dataset with the model's own generation
settings; the replies stand beside the references in a table, and replies that degenerate raise an alarm.

Rank 0 alone generates, since the student is whole on every rank under ZeRO-2; the others wait. The teacher's replies
to the same prompts stand beside them (see teacher_replies.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedModel

from distill_engine.data.order.collate import collate
from distill_engine.data.tokens.tokenised import Example, TokenisedDataset
from distill_engine.evaluate.generate import (
    GenerationError,
    Reply,
    decoded,
    own_settings,
    replies,
    row_prompts,
    same_draws,
)
from distill_engine.metrics.text.repetition import repetition
from distill_engine.setup.prepare import Prepared
from distill_engine.train.roles import Sinks

# Where an alarm begins. People rarely repeat three tokens in a row within a reply, and a sound model's replies are
# seldom longer than twice what it was trained on.
_REPEATS = 0.3  # repetition of one reply above its reference's
_MANY = 0.25  # of the replies
_LENGTH_FACTOR = 3.0


class SampleSinks(Sinks, Protocol):
    """The sinks of rank 0 (telemetry.sinks)."""

    def samples(self, step: int, seconds: float, rows: Sequence[Mapping[str, str]]) -> None:
        """Write a table of sample replies everywhere."""
        ...


@dataclass(frozen=True)
class Prompt:
    """One fixed example: its dataset's label, its ids, and both sides as text, cut as the model reads them; of a sound
    its title.

    repetition  the reference's share of token 3-grams that it has said before
    """

    dataset: str
    example: Example
    context: str
    reference: str
    repetition: float


@dataclass(frozen=True)
class Said:
    """What the student said to a prompt: the text, its length in tokens, end included, and its repetition."""

    text: str
    tokens: int
    repetition: float

    @property
    def empty(self) -> bool:
        """Whether there is not one word."""
        return not self.text.split()


def fixed_prompts(
    datasets: Sequence[TokenisedDataset], labels: Sequence[str], tokenizer: Any, per_dataset: int
) -> list[list[Prompt]]:
    """The first `per_dataset` examples of each dataset; a dataset's are one batch."""
    return [
        [_prompt(label, dataset.example(index), tokenizer) for index in range(min(per_dataset, len(dataset)))]
        for dataset, label in zip(datasets, labels, strict=True)
    ]


def _prompt(label: str, example: Example, tokenizer: Any) -> Prompt:
    reference = decoded(tokenizer, example.label_ids.tolist())
    context = decoded(tokenizer, example.context_ids.tolist()) if example.clip is None else example.clip.title
    return Prompt(label, example, context, reference, token_repetition(tokenizer, reference))


def token_repetition(tokenizer: Any, text: str) -> float:
    """Share of a text's token 3-grams that it has said before. Of tokens, not words: a student that is stuck often
    writes one endless word."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return repetition(" ".join(map(str, ids)))


def recipe_prompts(ready: Prepared) -> list[list[Prompt]]:
    """The prompts that the recipe asks for, a batch per dataset, no batch empty."""
    per_dataset = ready.recipe.validation.samples
    found = fixed_prompts(ready.valid_datasets, ready.valid_labels, ready.tokenizer, per_dataset)
    return [batch for batch in found if batch]


def answers(
    ready: Prepared,
    model: PreTrainedModel,
    prompts: Sequence[Sequence[Prompt]],
    settings: Mapping[str, Any],
    seed: int = 0,
) -> list[Reply]:
    """A reply to each prompt. Leaves weights, mode and random streams as they are; settings that sample draw the same
    for one seed, whoever answers and when.

    Raises GenerationError for settings that transformers refuses.
    """
    device = model.device
    said: list[Reply] = []
    with same_draws(device, seed):
        for batch in prompts:
            given = collate([one.example for one in batch], ready.layout, 1).to(device)
            said += replies(model, ready.tokenizer, given.inputs, settings, row_prompts(given, ready.layout))
    return said


class SampleReplies:
    """Answers the prompts and tells the sinks. Leaves weights, mode and random streams as they are."""

    def __init__(
        self,
        ready: Prepared,
        prompts: Sequence[Sequence[Prompt]],
        model: PreTrainedModel,
        sinks: SampleSinks,
        teacher_replies: Sequence[str] | None = None,
    ) -> None:
        """`model` is the student itself, without its engine; `teacher_replies` the teacher's reply to each prompt."""
        self._ready = ready
        self._prompts = prompts
        self._model = model
        self._sinks = sinks
        self._teacher_replies = teacher_replies
        self._new_tokens = ready.recipe.data.label_tokens

    def __call__(self, step: int, seconds: float) -> dict[str, float]:
        """Generate, write the table and any alarm, and return values by name (`sample/...`, without `valid/`).

        To be called in eval mode. A student that cannot generate is an alarm, not the end of the run.
        """
        started = time.perf_counter()
        try:
            said = self._generate()
        except (GenerationError, RuntimeError) as error:  # RuntimeError: out of memory, probabilities that are NaN
            reason = " ".join(str(error).split())[:300]
            self._alarm(step, seconds, f"the student could not answer the sample prompts: {reason}")
            return {}
        prompts = [prompt for batch in self._prompts for prompt in batch]
        teacher_replies = [None] * len(prompts) if self._teacher_replies is None else self._teacher_replies
        self._sinks.samples(step, seconds, [_row(*one) for one in zip(prompts, teacher_replies, said, strict=True)])
        values = sample_values(prompts, said)
        found = degenerations(prompts, said, self._least_tokens())
        if found:
            self._alarm(step, seconds, "; ".join(found))
        values["sample/seconds"] = time.perf_counter() - started
        return values

    def _generate(self) -> list[Said]:
        settings = own_settings(self._model, self._new_tokens)
        said = answers(self._ready, self._model, self._prompts, settings)
        return [Said(one.text, one.tokens, token_repetition(self._ready.tokenizer, one.text)) for one in said]

    def _least_tokens(self) -> int:
        """What the generation settings force replies to, however short the references are."""
        config = self._model.generation_config
        least = [getattr(config, name, None) for name in ("min_length", "min_new_tokens")]
        return max(int(value or 0) for value in least)

    def _alarm(self, step: int, seconds: float, what: str) -> None:
        text = (
            f"ALARM: {what}. The loss does not show this. Look at the samples (metrics.jsonl, `distill report`, W&B); "
            "if it lasts, raise losses.weights.task, train longer, or check the generation settings."
        )
        self._sinks.record("event", step, seconds, {}, text)


def sample_values(prompts: Sequence[Prompt], said: Sequence[Said]) -> dict[str, float]:
    """Shares and means over all replies, at least one; names without `valid/`."""
    replies_made, tokens = len(said), sum(one.tokens for one in said)
    return {
        "sample/empty_share": sum(one.empty for one in said) / replies_made,
        "sample/repetition": sum(one.repetition for one in said) / replies_made,
        "sample/unique_share": len({one.text for one in said}) / replies_made,
        "sample/length": tokens / replies_made,
        "sample/length_ratio": tokens / sum(len(prompt.example.label_ids) for prompt in prompts),
    }


def degenerations(prompts: Sequence[Prompt], said: Sequence[Said], least_tokens: int) -> list[str]:
    """What is wrong with the replies, a phrase each: empty, repeating, all the same, or of another length.

    least_tokens  the shortest reply that the generation settings allow: not the student's doing
    """
    found = []
    empty = sum(one.empty for one in said)
    if empty:
        found.append(f"{empty} of {len(said)} sample replies are empty")
    pairs = zip(prompts, said, strict=True)
    stuck = sum(one.repetition > _REPEATS + prompt.repetition for prompt, one in pairs)
    if stuck >= _MANY * len(said):
        found.append(f"{stuck} of {len(said)} sample replies repeat themselves")
    texts = {one.text for one in said}
    if len(said) > 1 and len(texts) == 1 and empty == 0 and len({prompt.reference for prompt in prompts}) > 1:
        found.append(f"all {len(said)} sample replies are the same")
    length = sum(one.tokens for one in said) / len(said)
    reference = sum(len(prompt.example.label_ids) for prompt in prompts) / len(prompts)
    if length > _LENGTH_FACTOR * max(reference, least_tokens) or length * _LENGTH_FACTOR < reference:
        found.append(f"sample replies are {length:.3g} tokens long on average, the references {reference:.3g}")
    return found


def _row(prompt: Prompt, teacher_replies: str | None, said: Said) -> dict[str, str]:
    teacher = {} if teacher_replies is None else {"teacher": teacher_replies}
    return {
        "dataset": prompt.dataset,
        "context": prompt.context,
        "reference": prompt.reference,
        **teacher,
        "student": said.text,
    }
