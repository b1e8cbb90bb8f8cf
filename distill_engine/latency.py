"""How long a reply takes: milliseconds per reply for several models under one protocol.

Batch 1, greedy, a fixed number of new tokens (so that a model cannot be fast by being short), the same contexts for
all models, models interleaved context by context (so that a busy machine hits all alike), warm-up discarded, median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Latency:
    """Milliseconds per reply of one model: median, 20th and 80th percentile, and tokens per second at the median."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    tokens_per_second: float


@torch.inference_mode()
def measure_latency(
    models: Mapping[str, PreTrainedModel], contexts: Sequence[Tensor], new_tokens: int = 16, warm_up: int = 3
) -> dict[str, Latency]:
    """Latency per model name.

    contexts    [1, S] int64 each, on the models' device; at least one more than `warm_up`
    new_tokens  tokens generated per reply, exactly
    """
    if len(contexts) <= warm_up:
        raise ValueError(f"{len(contexts)} contexts for {warm_up} warm-up replies: give more contexts.")
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number, context in enumerate(contexts):
        for name, model in models.items():
            started = time.perf_counter()
            _reply(model, context, new_tokens)
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: _summary(values, new_tokens) for name, values in seconds.items()}


def _reply(model: PreTrainedModel, context: Tensor, new_tokens: int) -> None:
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    generate(
        input_ids=context,
        attention_mask=torch.ones_like(context),
        num_beams=1,
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        no_repeat_ngram_size=0,
        encoder_no_repeat_ngram_size=0,
        forced_eos_token_id=None,
    )
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)


def _summary(seconds: list[float], new_tokens: int) -> Latency:
    ordered = sorted(1000.0 * value for value in seconds)
    last = len(ordered) - 1
    median = statistics.median(ordered)
    return Latency(median, ordered[round(0.2 * last)], ordered[round(0.8 * last)], 1000.0 * new_tokens / median)
