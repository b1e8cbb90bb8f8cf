"""How long replies take: one protocol for several models, in one interleaved run.

A case says how replies are generated. `fixed` cases generate exactly so many tokens (a model cannot be fast by being
short, nor slow by being long); `free` cases let each model end its replies as its own generation configuration says.
Every round times every case on every model with the same contexts, so that a machine that is busy for a while hits
all alike, and each round begins with another model, so that none always comes after the same one; the first rounds warm
up and are thrown away.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from distill_engine.evaluate.generate import own_settings, spoken_lengths
from distill_engine.evaluate.latency_rows import Case, Latency, Timing, summary
from distill_engine.families.lookup import family_of, shape_of
from distill_engine.models.generation_settings import ONE_REPLY
from distill_engine.models.own_settings import GenerationError
from distill_engine.values import Audio, Tokens

_MOST_GRAPHS = 1024  # of one compiled function


class CompileError(ValueError):
    """torch.compile was asked for and cannot be had."""


def measure_latency(
    models: Mapping[str, PreTrainedModel], contexts: Sequence[Tensor | Audio], new_tokens: int = 16, warm_up: int = 3
) -> dict[str, Latency]:
    """The simplest comparison, per model name: batch 1, greedy, a fixed number of tokens, each context once.

    contexts    [1, S] int64 each, or a window of sound each, on the models' device; at least one more than `warm_up`
    new_tokens  tokens generated per reply, exactly
    """
    if len(contexts) <= warm_up:
        raise ValueError(f"{len(contexts)} contexts for {warm_up} warm-up replies: give more contexts.")
    case = Case("fixed")
    measured = measure(models, [case], contexts, len(contexts) - warm_up, warm_up, new_tokens)
    return {name: summary([one.seconds for one in measured[name, case]], new_tokens) for name in models}


def measure(
    models: Mapping[str, PreTrainedModel],
    cases: Sequence[Case],
    contexts: Sequence[Tensor | Audio],
    rounds: int,
    warm_up: int,
    new_tokens: int,
    advance: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, Case], list[Timing]]:
    """`rounds` timings of each case on each model.

    contexts    [1, S] int64 each, or a window of sound each, on the models' device; taken in order, over and over
    new_tokens  of a reply: exactly in fixed cases; in free ones the limit of models that name none
    advance     called with (rounds done, all rounds), warm-up included

    Raises CompileError if a compiled case cannot run, GenerationError for a fixed length that no model can have.
    """
    if any(case.mode == "fixed" for case in cases):
        _require_room(models, new_tokens)
    timings: dict[tuple[str, Case], list[Timing]] = {(name, case): [] for case in cases for name in models}
    with _every_shape_compiled() if any(case.compiled for case in cases) else nullcontext():
        variants = {(name, case.compiled): _variant(model, case) for name, model in models.items() for case in cases}
        names = list(models)
        for number in range(warm_up + rounds):
            first = number % len(names)
            for case in cases:
                given = [contexts[(number * case.batch + row) % len(contexts)] for row in range(case.batch)]
                for name in names[first:] + names[:first]:
                    timing = _timed(variants[name, case.compiled], case, given, new_tokens)
                    if number >= warm_up:
                        timings[name, case].append(timing)
            if advance is not None:
                advance(number + 1, warm_up + rounds)
    return timings


def _require_room(models: Mapping[str, PreTrainedModel], new_tokens: int) -> None:
    for name, model in models.items():
        positions = shape_of(model.config).longest
        if new_tokens >= positions:  # the decoder's own first token takes a position, too
            raise GenerationError(
                f"replies of {new_tokens} tokens each (--new-tokens) do not fit model {name!r}, which has {positions} "
                f"positions. Ask for {positions - 1} or fewer."
            )


def _every_shape_compiled() -> AbstractContextManager[None]:
    """Without it torch.compile gives up after 8 graphs of one function, for all models together, and silently runs
    what comes then uncompiled: beams, batches and empty caches each ask for some."""
    from torch._dynamo import config

    changed: AbstractContextManager[None] = config.patch(
        recompile_limit=_MOST_GRAPHS, accumulated_recompile_limit=_MOST_GRAPHS, fail_on_recompile_limit_hit=True
    )
    return changed


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why models of this dtype cannot run on this device, or None if they can."""
    if device.type == "cuda" and dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported():
        return f"{torch.cuda.get_device_name(device)} has no bf16 arithmetic"
    try:
        value = torch.ones(1, 2, 4, 4, device=device, dtype=dtype)
        torch.nn.functional.scaled_dot_product_attention(value, value, value)
        torch.nn.functional.layer_norm(value @ value, (4,)).softmax(dim=-1)
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]
    return None


def _variant(model: PreTrainedModel, case: Case) -> PreTrainedModel:
    """The model, or one that shares its weights and compiles its forward pass (on its first calls)."""
    if not case.compiled:
        return model
    twin = copy.copy(model)
    twin.compile(dynamic=True)  # contexts and caches have many lengths
    return twin


@torch.inference_mode()
def _timed(model: PreTrainedModel, case: Case, contexts: Sequence[Tensor | Audio], new_tokens: int) -> Timing:
    inputs = _batched(model, contexts)
    # programs of one run may differ in where they run
    device = torch.device(getattr(model, "device", next(iter(inputs.values())).device))
    inputs = {name: one.to(device) for name, one in inputs.items()}
    settings = {**_settings(model, case, new_tokens), **ONE_REPLY}
    before = _allocated(device, reset=True)
    started = time.perf_counter()
    try:
        ids = _generated(model, inputs, settings)
    except RuntimeError as error:
        if case.compiled:
            raise _not_compiled(error) from error
        raise
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    extra = None if before is None else ((_allocated(device, reset=False) or 0.0) - before)
    tokens = (
        new_tokens * case.batch
        if case.mode == "fixed"
        else _said(model, ids if "input_features" in inputs else ids[:, 1:])
    )
    return Timing(seconds, tokens, extra)


def _not_compiled(error: RuntimeError) -> CompileError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return CompileError(
        f"the model does not run under torch.compile (--compile) here: {reason}. On a CPU it needs a C++ compiler "
        "(g++, or the one that CXX names), on a GPU Triton. Install it, or leave --compile out."
    )


def _generated(model: PreTrainedModel, inputs: Mapping[str, Tensor], settings: Mapping[str, object]) -> Tensor:
    """[B, T] ids, of texts with the decoder's start in front: of whatever program the model is."""
    if "input_features" in inputs:
        return family_of(model.config).generate(model, inputs, settings)
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    return generate(**inputs, **settings)


def _batched(model: PreTrainedModel, contexts: Sequence[Tensor | Audio]) -> Mapping[str, Tensor]:
    """What `generate` reads: [B, S] right-padded ids and their mask, or [B, C, F] features."""
    first, *others = contexts
    if isinstance(first, Audio):
        return first.beside(other for other in others if isinstance(other, Audio)).keywords
    rows = [context[0] for context in contexts if isinstance(context, Tensor)]
    pad = int(model.config.pad_token_id)
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    return Tokens(ids, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)).keywords


def _settings(model: PreTrainedModel, case: Case, new_tokens: int) -> dict[str, object]:
    asked = {"num_beams": case.beams, "do_sample": False, "use_cache": case.kv_cache}
    if case.mode == "free":
        return own_settings(model, new_tokens, asked)
    lengths = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    # what could end a reply early, or cost some models time that others do not spend
    neutral = {"no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "forced_eos_token_id": None}
    return {**asked, **lengths, **neutral}


def _said(model: PreTrainedModel, ids: Tensor) -> int:
    ends = getattr(model.generation_config, "eos_token_id", None)
    end_ids = [ends] if isinstance(ends, int) else list(ends or [])
    return int(spoken_lengths(ids, int(model.config.pad_token_id), end_ids).sum())


def _allocated(device: torch.device, reset: bool) -> float | None:
    """MiB: allocated now (and the peak forgotten), or at the peak since then. None on a CPU."""
    if device.type != "cuda":
        return None
    if not reset:
        return torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**20
