"""The degeneration guard: what the student says to a few fixed prompts at each validation.

A falling loss proves little about free generation: a student may repeat itself, say nothing, or never stop, at the
best perplexity so far. So it answers the first validation examples of each task with the model's own generation
settings; the replies stand beside the gold ones in a table, and replies that degenerate raise an alarm.

Rank 0 alone generates, since the student is whole on every rank under ZeRO-2; the others wait. The teacher is sharded
and could answer only with all ranks at every token, so it is left out: `distill report-card` shows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from distill_engine.data.collate import collate
from distill_engine.data.layout import SequenceLayout
from distill_engine.data.tokenised import Example, TokenisedTask
from distill_engine.generate import GenerationError, Reply, decoded, own_settings, replies
from distill_engine.generation_metrics import repetition
from distill_engine.prepare import Prepared

_SEED = 0  # of generation settings that sample: the same draws at every validation
# Where an alarm begins. People hardly repeat three words within a reply (under 1 % of them), and a model's replies
# are rarely longer than twice what it was trained on.
_MOST_REPETITION = 0.2  # above the gold replies'
_LENGTH_FACTOR = 3.0


class Says(Protocol):
    """The sinks of rank 0 (telemetry.sinks)."""

    def record(self, kind: Any, step: int, seconds: float, values: dict[str, float], text: str = "") -> None:
        """Write one record everywhere."""
        ...

    def samples(self, step: int, seconds: float, rows: Sequence[Mapping[str, str]]) -> None:
        """Write a table of sample replies everywhere."""
        ...


@dataclass(frozen=True)
class Prompt:
    """One fixed example: its task's label, its ids, and both sides as text, cut as the model reads them."""

    task: str
    example: Example
    context: str
    gold: str


def fixed_prompts(
    tasks: Sequence[TokenisedTask], labels: Sequence[str], tokenizer: Any, per_task: int
) -> list[list[Prompt]]:
    """The first `per_task` examples of each task; a task's are one batch."""
    return [
        [
            Prompt(label, one, decoded(tokenizer, one.context_ids.tolist()), decoded(tokenizer, one.label_ids.tolist()))
            for one in (task.example(index) for index in range(min(per_task, len(task))))
        ]
        for task, label in zip(tasks, labels, strict=True)
    ]


def capped_settings(model: PreTrainedModel, new_tokens: int) -> dict[str, Any]:
    """The model's own generation settings with at most `new_tokens` tokens, the limit of a training label."""
    settings = own_settings(model, new_tokens)
    config = model.generation_config
    longest = [new_tokens]
    if getattr(config, "max_new_tokens", None) is not None:
        longest.append(int(config.max_new_tokens))
    elif getattr(config, "max_length", None) is not None:
        longest.append(int(config.max_length) - 1)  # it counts the start token
    return settings | {"max_new_tokens": max(1, min(longest))}


def sample_replies(ready: Prepared, model: PreTrainedModel, sinks: Says) -> SampleReplies | None:
    """The guard that the recipe asks for, with `model` as the student; None without prompts."""
    recipe = ready.recipe
    prompts = fixed_prompts(ready.valid_tasks, ready.valid_labels, ready.tokenizer, recipe.validation.samples)
    if not any(prompts):
        return None
    return SampleReplies(prompts, model, ready.tokenizer, ready.layout, sinks, recipe.data.label_tokens)


class SampleReplies:
    """Answers the prompts and tells the sinks. Leaves weights, mode and random streams as they are."""

    def __init__(
        self,
        prompts: Sequence[Sequence[Prompt]],
        model: PreTrainedModel,
        tokenizer: Any,
        layout: SequenceLayout,
        sinks: Says,
        new_tokens: int,
    ) -> None:
        """`model` is the student itself, without its engine; `new_tokens` limits a reply."""
        self._prompts = [list(batch) for batch in prompts if batch]
        self._model = model
        self._tokenizer = tokenizer
        self._layout = layout
        self._sinks = sinks
        self._new_tokens = new_tokens

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
        self._sinks.samples(step, seconds, [_row(*pair) for pair in zip(prompts, said, strict=True)])
        values = sample_values(prompts, said)
        found = degenerations(prompts, said, self._least_tokens())
        if found:
            self._alarm(step, seconds, "; ".join(found))
        values["sample/seconds"] = time.perf_counter() - started
        return values

    def _generate(self) -> list[Reply]:
        device = self._model.device
        settings = capped_settings(self._model, self._new_tokens)
        said: list[Reply] = []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(_SEED)
            for prompts in self._prompts:
                batch = collate([one.example for one in prompts], [0] * len(prompts), self._layout, 1).to(device)
                said += replies(self._model, self._tokenizer, batch.input_ids, batch.attention_mask, settings)
        return said

    def _least_tokens(self) -> int:
        """What the generation settings force replies to, however short the gold ones are."""
        config = self._model.generation_config
        least = [getattr(config, name, None) for name in ("min_length", "min_new_tokens")]
        return min(self._new_tokens, max(int(value or 0) for value in least))

    def _alarm(self, step: int, seconds: float, what: str) -> None:
        text = (
            f"ALARM: {what}. The loss does not show this. Look at the samples (metrics.jsonl, `distill report`, W&B); "
            "if it lasts, raise losses.weights.task, train longer, or check the generation settings."
        )
        self._sinks.record("event", step, seconds, {}, text)


def sample_values(prompts: Sequence[Prompt], said: Sequence[Reply]) -> dict[str, float]:
    """Shares and means over all replies, at least one; names without `valid/`."""
    texts = [reply.text for reply in said]
    gold = sum(len(prompt.example.label_ids) for prompt in prompts)
    tokens = sum(reply.tokens for reply in said)
    return {
        "sample/empty_share": sum(not text.split() for text in texts) / len(texts),
        "sample/repetition": _mean(repetition, texts),
        "sample/unique_share": len(set(texts)) / len(texts),
        "sample/length": tokens / len(texts),
        "sample/length_ratio": tokens / gold,
    }


def degenerations(prompts: Sequence[Prompt], said: Sequence[Reply], least_tokens: int) -> list[str]:
    """What is wrong with the replies, a phrase each: empty, repeating, all the same, or of another length.

    least_tokens  the shortest reply that the generation settings allow: not the student's doing
    """
    values = sample_values(prompts, said)
    golds = [prompt.gold for prompt in prompts]
    found = []
    empty = sum(not reply.text.split() for reply in said)
    if empty:
        found.append(f"{empty} of {len(said)} sample replies are empty")
    of_gold = _mean(repetition, golds)
    if values["sample/repetition"] > of_gold + _MOST_REPETITION:
        found.append(
            f"sample replies repeat themselves ({values['sample/repetition']:.0%} of their word 3-grams were said "
            f"before, {of_gold:.0%} in the gold replies)"
        )
    texts = {reply.text for reply in said}
    if len(said) > 1 and len(texts) == 1 and texts != {""} and len(set(golds)) > 1:
        found.append(f"all {len(said)} sample replies are the same")
    length, gold = values["sample/length"], sum(len(prompt.example.label_ids) for prompt in prompts) / len(prompts)
    if length > _LENGTH_FACTOR * max(gold, least_tokens) or length * _LENGTH_FACTOR < gold:
        found.append(f"sample replies are {length:.3g} tokens long on average, the gold replies {gold:.3g}")
    return found


def _row(prompt: Prompt, reply: Reply) -> dict[str, str]:
    return {"task": prompt.task, "context": prompt.context, "gold": prompt.gold, "student": reply.text}


def _mean(measure: Callable[[str], float], texts: Sequence[str]) -> float:
    return sum(measure(text) for text in texts) / len(texts)
