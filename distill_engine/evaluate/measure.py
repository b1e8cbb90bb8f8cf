"""How models predict the labels of a batch, beside their teacher: the one evaluator, of training and finished models.

Large logits are not formed as a whole: where training would take a fused kernel for them, so does this
(losses.kernels.dispatch).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill_engine.families.lookup import family_of, shape_of, start_of
from distill_engine.losses.config import LossWeights
from distill_engine.losses.kernels.dispatch import Implementation, choose
from distill_engine.losses.objective import Objective, TermValue
from distill_engine.metrics.scores import Scores
from distill_engine.metrics.tally import Tally
from distill_engine.models.adapter import adapt
from distill_engine.models.loading import Checkpoint, local_copy
from distill_engine.values import IGNORED_LABEL, Batch, FeatureRequest, Features

FeatureFunction = Callable[[Batch, FeatureRequest], Features]


class ModelError(ValueError):
    """A model folder cannot be used."""


def load_model(folder: str | Path, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model in eval mode. Raises ModelError with the reason if it cannot be loaded."""
    try:
        model: Any = Checkpoint(local_copy(str(folder))).load(dtype)  # the types of `to` do not know devices
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {str(folder)!r} cannot be loaded: {reason} Give a folder written by save_pretrained (a run's "
            "`best`), or a name on the Hugging Face Hub."
        ) from error
    return model.to(device).eval()


def adapters_of(
    models: Mapping[str, PreTrainedModel], teacher: PreTrainedModel | None
) -> tuple[dict[str, FeatureFunction], FeatureFunction | None]:
    """An adapter per model name, and the teacher's: the same one where a model is the teacher."""
    adapters: dict[str, FeatureFunction] = {name: adapt(model) for name, model in models.items()}
    same = [name for name, model in models.items() if model is teacher]
    return adapters, adapters[same[0]] if same else None if teacher is None else adapt(teacher)


def prediction_kernel(
    models: Mapping[str, PreTrainedModel], teacher: PreTrainedModel | None, batch: Batch
) -> Implementation:
    """What computes task loss and divergence of a batch on its device: blocks of the vocabulary where one matrix of
    logits would be large. Blocks mask one token in all models, so not where families differ in it."""
    configs = [model.config for model in (*models.values(), teacher) if model is not None]
    if len({family_of(config).masked_id(start_of(config)) for config in configs}) > 1:
        return "reference"
    largest = max(shape_of(config).vocab for config in configs)
    kernels, _ = choose({}, batch.labels.device, 4 * batch.labels.numel() * largest)
    return kernels.prediction


def labels_alone() -> Objective:
    """Asks for logits alone: how labels are predicted."""
    return Objective(LossWeights({"task": 1.0}), {})


class Measured(NamedTuple):
    """What one micro-batch adds for one model.

    sums        [datasets, columns of the tally] float64
    scores      what they were made of
    terms       of the objective
    vocabulary  tokens that model and teacher choose from
    """

    sums: Tensor
    scores: Scores
    terms: dict[str, TermValue]
    vocabulary: int


@torch.no_grad()
def measured(
    models: Mapping[str, FeatureFunction],
    teacher: FeatureFunction | None,
    batch: Batch,
    objective: Objective,
    tally: Tally,
    datasets: int,
) -> dict[str, Measured]:
    """The one evaluator: every model predicts the labels of a batch, beside the teacher, which runs once.

    Validation gives it the student that trains, `distill evaluate` finished models. Raises ModelError for a model whose
    vocabulary is not the teacher's.
    """
    beside = None if teacher is None else teacher(batch, objective.teacher_request())
    theirs = objective.teacher_scores(beside, batch) if beside is not None and "teacher" in tally.given else None
    found = {}
    for name, model in models.items():
        own = beside if beside is not None and model is teacher else model(batch, objective.student_request())
        if beside is not None and beside.vocabulary != own.vocabulary:
            raise ModelError(
                f"model {name!r} predicts {own.vocabulary} tokens, the teacher {beside.vocabulary}. Only models of one "
                "vocabulary can be compared. Give another --teacher."
            )
        terms, tokens = objective.terms_and_scores(own, beside, batch)
        if "divergence" in tally.given and tokens.divergence is None:
            assert own.logits is not None and beside is not None and beside.logits is not None
            tokens = tokens._replace(divergence=_divergences(own.logits, beside.logits, batch.labels))
        scores = Scores(tokens, batch, theirs)
        found[name] = Measured(tally.sums(scores, datasets), scores, terms, own.vocabulary)
    return found


def _divergences(logits: Tensor, right: Tensor, labels: Tensor) -> Tensor:
    """[B, T] KL(teacher || model), 0 where there is no label."""
    log_s, log_t = (torch.log_softmax(one, dim=-1, dtype=torch.float32) for one in (logits, right))  # [B, T, V]
    return ((log_t - log_s) * log_t.exp()).sum(dim=-1).masked_fill(labels == IGNORED_LABEL, 0.0)


def parameter_count(model: PreTrainedModel) -> int:
    """Elements of all parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
