"""Operations that losses and meter start per micro-batch: `python benchmarks/loss_launches.py` prints a JSON line.

Counted, not timed: what PyTorch dispatches for the terms of recipes/bb3b_tinybert.yaml (2 + 9 layers) on tiny tensors,
views and allocations left out. Triton's kernels, interpreted where there is no GPU, are counted beside; what an
interpreter does inside is not. Products of matrices (of projections) are no small operations and counted apart.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from distill_engine.losses.kernels.dispatch import Kernels
from distill_engine.losses.objective import Objective
from distill_engine.recipe.load import load_recipe
from distill_engine.telemetry.averages import Averages
from distill_engine.train.meter import Meter
from distill_engine.values import AttentionKind, Batch, Features, Projected, QueryKey, Stack, Tokens

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "bb3b_tinybert.yaml"
LAYERS = {Stack.ENCODER: 2, Stack.DECODER: 9}
EXAMPLES, CONTEXTS, LABELS, WIDTH, HEADS, VOCABULARY = 2, 6, 5, 32, 2, 40
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"}


class Launches(TorchDispatchMode):
    """Counts, by name, what is dispatched while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.small: Counter[str] = Counter()
        self.products = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name in PRODUCTS:
            self.products += 1
        elif name not in ALLOCATIONS and not _is_view(func):
            self.small[name] += 1
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases) or func.__name__.startswith("detach")


@contextmanager
def counting() -> Iterator[Launches]:
    """Operations of a block; kernels that are interpreted count once each, whatever the interpreter does."""
    from triton.runtime import interpreter

    run = interpreter.GridExecutor.__call__
    launches = Launches()

    def once(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.kernels += 1
        with _disable_current_modes():
            return run(self, *args, **kwargs)

    with mock.patch.object(interpreter.GridExecutor, "__call__", once), launches:
        yield launches


def objective() -> Objective:
    """The recipe's, with the kernels that `auto` takes for it on a GPU."""
    losses = load_recipe(RECIPE).losses
    supervision = {stack: tuple(range(layers)) for stack, layers in LAYERS.items()}
    kernels = Kernels("triton", "triton", "reference")
    return Objective(losses.weights, supervision, losses.definition, losses.temperature, losses.clamp, kernels)


def micro_batch(seed: int) -> Batch:
    """Random tokens, padded."""
    draw = torch.Generator().manual_seed(seed)
    tokens, labels = (torch.randint(VOCABULARY, (EXAMPLES, size), generator=draw) for size in (CONTEXTS, LABELS))
    mask = torch.ones_like(tokens)
    mask[1, 4:], labels[1, 3:] = 0, -100
    return Batch.of(Tokens(tokens, mask), labels.clamp(min=0), labels)


def features(seed: int, student: bool) -> Features:
    """Random ones of every kind that the recipe compares; a student's go through projections (`always`)."""
    draw = torch.Generator().manual_seed(seed)
    lengths = {Stack.ENCODER: CONTEXTS, Stack.DECODER: LABELS}

    def tensor(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draw).requires_grad_(student)

    def vectors(stack: Stack) -> torch.Tensor | Projected:
        states = tensor(EXAMPLES, lengths[stack], WIDTH)
        return Projected(states, tensor(WIDTH, WIDTH), tensor(WIDTH)) if student else states

    def pair(kind: AttentionKind) -> QueryKey:
        keys = lengths[Stack.DECODER if kind is AttentionKind.DECODER_SELF else Stack.ENCODER]
        size = WIDTH // HEADS
        queries = tensor(EXAMPLES, HEADS, lengths[kind.query_stack], size)
        return QueryKey(queries, tensor(EXAMPLES, HEADS, keys, size), size**-0.5)

    return Features(
        logits=tensor(EXAMPLES, LABELS, VOCABULARY),
        embeddings={stack: vectors(stack) for stack in Stack},
        hidden={(stack, layer): vectors(stack) for stack in Stack for layer in range(LAYERS[stack])},
        attention={(kind, layer): pair(kind) for kind in AttentionKind for layer in range(LAYERS[kind.query_stack])},
    )


def count() -> dict[str, Launches]:
    """By part, of the second of two micro-batches: what is made once per run or interval is there by then."""
    goal = objective()
    meter = Meter(goal, Averages(), 1)
    for seed in (0, 1):
        batch, student, teacher = micro_batch(seed), features(2 * seed, True), features(2 * seed + 1, False)
        with counting() as divisors:
            rows = goal.divisors([batch], lambda tensor: tensor, 1)
        with counting() as terms:
            values, hits = goal.terms_and_hits(student, teacher, batch)
        with counting() as total:
            share = goal.total(values, rows[0])
        with counting() as metering:
            meter.add_micro_batch(batch, values, hits, 1)
        with counting() as backward:
            share.backward()
    return {"divisors": divisors, "terms": terms, "total": total, "meter": metering, "backward": backward}


def summary(parts: Mapping[str, Launches]) -> dict[str, Any]:
    """Numbers for one line of JSON."""
    small = {name: part.small.total() for name, part in parts.items()}
    return {
        "loss_launches_per_micro_batch": sum(small.values()),
        "by_part": small,
        "kernels": sum(part.kernels for part in parts.values()),
        "products": sum(part.products for part in parts.values()),
    }


if __name__ == "__main__":
    found = count()
    if "--names" in sys.argv:
        for part, launches in found.items():
            print(part, launches.kernels, launches.products, dict(launches.small.most_common()))
    print(json.dumps(summary(found)))
