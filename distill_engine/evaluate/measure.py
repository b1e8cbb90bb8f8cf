"""Measures finished models: teacher-forced quality on a data set, beside their teacher.

Beside the values of validation there is `teacher_kl`. Large logits are not formed as a whole: where training would take
a fused kernel for them, so does this (losses.kernels.dispatch).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill_engine.families.lookup import family_of, shape_of, start_of
from distill_engine.losses.kernels.dispatch import Implementation, choose, vocabulary_scores
from distill_engine.losses.quality import TokenScores, token_scores
from distill_engine.metrics.scores import Scores
from distill_engine.metrics.tally import Tally
from distill_engine.models.adapter import adapt
from distill_engine.models.loading import Checkpoint, local_copy
from distill_engine.values import IGNORED_LABEL, Batch, FeatureRequest, Features, OutputHead

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


def tally_of(with_teacher: bool) -> Tally:
    """What is summed up of a model, beside a teacher or alone."""
    return Tally("agreement", "divergence") if with_teacher else Tally()


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


@torch.no_grad()
def batch_sums(
    models: Mapping[str, FeatureFunction],
    teacher: FeatureFunction | None,
    batch: Batch,
    datasets: int,
    implementation: Implementation = "reference",
) -> dict[str, Tensor]:
    """[datasets, columns of the tally] float64 per model name, summed over the batch; the teacher runs once.

    Raises ModelError for a model whose vocabulary is not the teacher's.
    """
    whole = implementation == "reference"
    request = FeatureRequest(logits=whole, head=not whole)
    teacher_features = None if teacher is None else teacher(batch, request)
    tally, sums = tally_of(teacher is not None), {}
    for name, adapter in models.items():
        features = teacher_features if teacher_features is not None and adapter is teacher else adapter(batch, request)
        if teacher_features is not None and teacher_features.vocabulary != features.vocabulary:
            raise ModelError(
                f"model {name!r} predicts {features.vocabulary} tokens, the teacher "
                f"{teacher_features.vocabulary}. Only models of one vocabulary can be compared. Give another --teacher."
            )
        scores = _scores(features, teacher_features, batch.labels, implementation)
        sums[name] = tally.sums(Scores(scores, batch), datasets)
    return sums


def _head(features: Features) -> OutputHead:
    assert features.head is not None
    return features.head


def _scores(
    features: Features, teacher_features: Features | None, labels: Tensor, implementation: Implementation
) -> TokenScores:
    """How every label position [B, T] is predicted; with a divergence where there is a teacher."""
    if features.logits is None:
        teacher = None if teacher_features is None else _head(teacher_features)
        return vocabulary_scores(implementation, _head(features), teacher, labels, temperature=1.0)
    right = None if teacher_features is None else teacher_features.logits
    scores = token_scores(features.logits, right, labels)
    return scores if right is None else scores._replace(divergence=_divergences(features.logits, right, labels))


def _divergences(logits: Tensor, right: Tensor, labels: Tensor) -> Tensor:
    """[B, T] KL(teacher || model), 0 where there is no label."""
    log_s, log_t = (torch.log_softmax(one, dim=-1, dtype=torch.float32) for one in (logits, right))  # [B, T, V]
    return ((log_t - log_s) * log_t.exp()).sum(dim=-1).masked_fill(labels == IGNORED_LABEL, 0.0)


def parameter_count(model: PreTrainedModel) -> int:
    """Elements of all parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
