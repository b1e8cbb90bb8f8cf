"""All loss terms a second time (float64, one token or pair at a time), and a two-model case for the objective."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch

from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.values import AttentionKind, Features, Stack


@pytest.fixture(scope="session")
def compiled() -> ModuleType:
    """compiled_kernels.py: `compile_reports`, `Job`."""
    return importlib.import_module("compiled_kernels")


@pytest.fixture(scope="session")
def beside_this() -> Callable[[str], ModuleType]:
    """Loads a module of this folder by its name."""
    return importlib.import_module


@pytest.fixture(scope="session")
def attention_cases() -> ModuleType:
    """attention_cases.py: what every implementation of the attention term has to pass."""
    return importlib.import_module("attention_cases")


def token_rows(batch, stack):
    """(example, position) of every token that counts in a stack."""
    kept = batch.inputs.attention_mask == 1 if stack is Stack.ENCODER else batch.labels >= 0
    return [tuple(pair) for pair in kept.nonzero().tolist()]


def plain_mse(student, teacher, rows, clamp):
    """Sum over tokens of the mean over the width of clamped squared differences."""
    total = 0.0
    for example, position in rows:
        difference = (student[example, position].double() - teacher[example, position].double()).tolist()
        total += sum(min(d**2, clamp) for d in difference) / len(difference)
    return total


def visible_keys(batch, kind, example, position):
    """Key positions that a query sees."""
    if kind is AttentionKind.DECODER_SELF:
        return list(range(position + 1))
    return batch.inputs.attention_mask[example].nonzero().flatten().tolist()


def plain_attention(student, teacher, batch, kind, clamp):
    """Sum over visible pairs of the mean over heads, and the number of such pairs."""
    total, pairs = 0.0, 0
    for example, position in token_rows(batch, kind.query_stack):
        for key in visible_keys(batch, kind, example, position):
            pairs += 1
            for head in range(student.query.shape[1]):
                s, t = (
                    (side.query[example, head, position].double() @ side.key[example, head, key].double()).item()
                    / math.sqrt(side.query.shape[-1])
                    for side in (student, teacher)
                )
                total += min((s - t) ** 2, clamp) / student.query.shape[1]
    return total, pairs


def plain_task(logits, batch):
    """Sum of -log p(label)."""
    total = 0.0
    for example, position in token_rows(batch, Stack.DECODER):
        row = logits[example, position].detach().double()
        total += (row.exp().sum().log() - row[batch.labels[example, position]]).item()
    return total


def plain_prediction(student, teacher, batch, temperature):
    """T^2 times the sum of p_t (log p_t - log p_s)."""
    total = 0.0
    for example, position in token_rows(batch, Stack.DECODER):
        s, t = (side[example, position].detach().double() / temperature for side in (student, teacher))
        log_s, log_t = s - s.exp().sum().log(), t - t.exp().sum().log()
        total += (log_t.exp() * (log_t - log_s)).sum().item()
    return total * temperature**2


def plain_terms(student, teacher, batch, supervision, *, definition, temperature=1.0, clamp=None):
    """term -> (sum, count) of one micro-batch."""
    limit = math.inf if clamp is None else clamp
    rows = {stack: token_rows(batch, stack) for stack in Stack}
    contexts, labels = len(rows[Stack.ENCODER]), len(rows[Stack.DECODER])
    sizes = {Stack.ENCODER: contexts, Stack.DECODER: labels}
    found = {
        "task": (plain_task(student.logits, batch), labels),
        "prediction": (plain_prediction(student.logits, teacher.logits, batch, temperature), labels),
        "encoder": (
            plain_mse(student.encoder_output, teacher.encoder_output, rows[Stack.ENCODER], math.inf),
            contexts,
        ),
    }
    for stack in Stack:
        value = plain_mse(student.embeddings[stack], teacher.embeddings[stack], rows[stack], limit)
        found[f"{stack.value}_embedding"] = (value, sizes[stack])
        layers = [
            plain_mse(student.hidden[stack, n], teacher.hidden[stack, teacher_layer], rows[stack], limit)
            for n, teacher_layer in enumerate(supervision[stack])
        ]
        found[f"{stack.value}_hidden"] = (sum(layers) / len(layers), sizes[stack])
    for term, kind in (
        ("encoder_self_attention", AttentionKind.ENCODER_SELF),
        ("decoder_self_attention", AttentionKind.DECODER_SELF),
        ("cross_attention", AttentionKind.CROSS),
    ):
        layers = [
            plain_attention(student.attention[kind, n], teacher.attention[kind, teacher_layer], batch, kind, limit)
            for n, teacher_layer in enumerate(supervision[kind.query_stack])
        ]
        value, pairs = sum(total for total, _ in layers) / len(layers), layers[0][1]
        if definition == "parlai":
            padded_keys = student.attention[kind, 0].key.shape[2]
            found[term] = (value / padded_keys, sizes[kind.query_stack])
        else:
            found[term] = (value, pairs)
    return found


@pytest.fixture(scope="session")
def plain() -> SimpleNamespace:
    """The second implementation."""
    return SimpleNamespace(terms=plain_terms, mse=plain_mse, attention=plain_attention, prediction=plain_prediction)


# ---- a student of 2 + 3 layers, distilled from layers of a teacher of 2 + 4 -----------------------------------------

EVERYTHING = LossWeights(task=1, encoder=2, embedding=4, hidden=64, self_attention=4, cross_attention=64, prediction=64)
SUPERVISION = {Stack.ENCODER: (1, 0), Stack.DECODER: (0, 2, 3)}
STUDENT, TEACHER = {Stack.ENCODER: 2, Stack.DECODER: 3}, {Stack.ENCODER: 2, Stack.DECODER: 4}


def objective(definition="invariant", weights=EVERYTHING, **options) -> Objective:
    """All terms weighted, unless said otherwise."""
    return Objective(weights, SUPERVISION, definition, **options)


def one_rank(tensor):
    """The sum over a group of one."""
    return tensor


def step_total(target: Objective, group, sum_across_ranks=one_rank, world_size=1) -> torch.Tensor:
    """Loss of one optimizer step on this rank; group: (batch, student features, teacher features)."""
    divisors = target.divisors([batch for batch, _, _ in group], sum_across_ranks, world_size)
    shares = [
        target.total(target.terms(student, teacher, batch), row)
        for (batch, student, teacher), row in zip(group, divisors, strict=True)
    ]
    return torch.stack(shares).sum()


def leaves(features: Features) -> list[torch.Tensor]:
    """Every tensor that is there."""
    pairs = [side for pair in features.attention.values() for side in (pair.query, pair.key)]
    every = [features.logits, features.encoder_output, *features.embeddings.values(), *features.hidden.values(), *pairs]
    return [tensor for tensor in every if tensor is not None]


@pytest.fixture(scope="session")
def two(tiny) -> SimpleNamespace:
    """The helpers above, and `features(batch)`: random features of student and teacher over the batch's vocabulary."""

    def features(batch, seed=0, **sizes):
        options = {"vocabulary": tiny.VOCABULARY} | sizes
        student = tiny.features(batch, STUDENT, seed=seed, **options)
        return student, tiny.features(batch, TEACHER, seed=seed + 1, **options)

    return SimpleNamespace(
        objective=objective, total=step_total, leaves=leaves, features=features, WEIGHTS=EVERYTHING,
        SUPERVISION=SUPERVISION,
    )  # fmt: skip


@pytest.fixture
def case(family, tiny, two):
    """A ragged batch in a family's layout with features of both models."""
    batch = tiny.batch(family, contexts=(5, 3, 1), labels=(4, 6, 2), pad_to=(6, 8))
    return (batch, *two.features(batch))
