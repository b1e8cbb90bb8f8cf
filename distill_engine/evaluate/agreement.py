"""Whether two ways of running a student say the same: PyTorch, and what it was exported to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distill_engine.data.tokens.tokenised import TokenisedDataset
from distill_engine.evaluate.compare import spread
from distill_engine.evaluate.generate import decoded, own_settings
from distill_engine.metrics.named import computable
from distill_engine.models.generation_settings import ONE_REPLY

_PER_BATCH = 8


@dataclass(frozen=True)
class Prompts:
    """What both answer.

    contexts  [1, S] int64 each, on the CPU
    references     the right answers; empty where there are none
    source    where they are from, as people read it
    """

    contexts: Sequence[Tensor]
    references: Sequence[str]
    source: str


def validation_prompts(dataset: TokenisedDataset, tokenizer: Any, count: int) -> Prompts:
    """At most `count` of a dataset, evenly spread over it."""
    examples = spread(dataset, count)
    contexts = [torch.tensor(one.context_ids, dtype=torch.long)[None] for one in examples]
    return Prompts(contexts, [decoded(tokenizer, one.label_ids.tolist()) for one in examples], "validation")


def random_prompts(words: int, count: int, tokens: int) -> Prompts:
    """Contexts of so many random tokens each, special ones left out; the same every time. `words`: of a vocabulary."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(min(5, words - 1), words, (count, 1, tokens), generator=draw)
    return Prompts(list(ids), [], "random")


@dataclass(frozen=True)
class Difference:
    """The first prompt with two answers."""

    context: str
    student: str
    other: str


@dataclass(frozen=True)
class Agreement:
    """How alike replies are.

    share    of prompts whose replies are the same tokens
    metrics  of texts, by name: the student's value and the other's; empty without right answers
    """

    share: float
    prompts: int
    first: Difference | None
    metrics: dict[str, tuple[float, float]]


def agreement(student: Any, other: Any, tokenizer: Any, prompts: Prompts, new_tokens: int) -> Agreement:
    """Both answer every context (at least one) greedily or as the student's settings say, without sampling."""
    contexts, references = prompts.contexts, prompts.references
    one, two = (said_ids(model, contexts, new_tokens) for model in (student, other))
    texts = [[decoded(tokenizer, ids) for ids in said] for said in (one, two)]
    different = [number for number, pair in enumerate(zip(one, two, strict=True)) if pair[0] != pair[1]]
    first = None
    if different:
        at = different[0]
        first = Difference(decoded(tokenizer, contexts[at][0].tolist()), texts[0][at], texts[1][at])
    right = [[reference] for reference in references]
    judged = [metric for metric in computable() if references and metric.better != "neither"]
    metrics = {one.name: (one.value(texts[0], right), one.value(texts[1], right)) for one in judged}
    return Agreement(1.0 - len(different) / len(contexts), len(contexts), first, metrics)


@torch.no_grad()
def said_ids(model: Any, contexts: Sequence[Tensor], new_tokens: int) -> list[list[int]]:
    """Generated ids of each context, without start, end and padding."""
    pad = int(model.config.pad_token_id)
    settings = {**own_settings(model, new_tokens, {"do_sample": False}), **ONE_REPLY}
    left_out = {pad, int(model.config.eos_token_id), int(model.generation_config.decoder_start_token_id)}
    said: list[list[int]] = []
    for begin in range(0, len(contexts), _PER_BATCH):
        rows = [context[0] for context in contexts[begin : begin + _PER_BATCH]]
        ids = pad_sequence(rows, batch_first=True, padding_value=pad).to(model.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
        replies = model.generate(input_ids=ids, attention_mask=mask, **settings)
        said += [[number for number in row if number not in left_out] for row in replies.tolist()]
    return said
