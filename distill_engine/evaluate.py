"""Measures finished models: teacher-forced quality on a data set, beside their teacher.

Beside the values of losses.quality there is `teacher_kl`: nats per label token by which a model's next-token
distribution diverges from the teacher's, KL(teacher || model), at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from distill_engine.losses.quality import COLUMNS, quality_sums, quality_values, token_scores
from distill_engine.models.adapter import adapt
from distill_engine.values import Batch, FeatureRequest, Features

MEASURED = (*COLUMNS, "divergence_sum")
Shows = Callable[[Batch, FeatureRequest], Features]
_REQUEST = FeatureRequest()


class ModelError(ValueError):
    """A model folder cannot be used."""


def load_model(folder: str | Path, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model in eval mode. Raises ModelError with the reason if it cannot be loaded."""
    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {str(folder)!r} cannot be loaded: {reason} Give a folder written by save_pretrained (a run's "
            "`best`), or a name on the Hugging Face Hub."
        ) from error
    return model.to(device).eval()


def adapters_of(models: Mapping[str, PreTrainedModel]) -> dict[str, Shows]:
    """An adapter per model name."""
    return {name: adapt(model) for name, model in models.items()}


@torch.no_grad()
def batch_sums(
    models: Mapping[str, Shows], teacher: Shows | None, batch: Batch, tasks: int
) -> dict[str, Tensor]:
    """[tasks, len(MEASURED)] float64 per model name, summed over the batch; the teacher runs once.

    Raises ModelError for a model whose vocabulary is not the teacher's.
    """
    taught = None if teacher is None else teacher(batch, _REQUEST).logits
    sums = {}
    for name, adapter in models.items():
        logits = taught if adapter is teacher else adapter(batch, _REQUEST).logits
        assert logits is not None, "logits are always requested"
        if taught is not None and taught.shape != logits.shape:
            raise ModelError(
                f"model {name!r} predicts {logits.shape[-1]} tokens, the teacher {taught.shape[-1]}. Only models of "
                "one vocabulary can be compared. Give another --teacher."
            )
        divergence = _divergence_sums(logits, taught, batch, tasks)
        quality = quality_sums(token_scores(logits, taught, batch.labels), batch, tasks)
        sums[name] = torch.cat([quality, divergence[:, None]], dim=1)
    return sums


def _divergence_sums(logits: Tensor, taught: Tensor | None, batch: Batch, tasks: int) -> Tensor:
    """[tasks] float64 sums over label tokens of KL(teacher || model); 0 without a teacher."""
    sums = torch.zeros(tasks, dtype=torch.float64, device=logits.device)
    if taught is None:
        return sums
    said = torch.log_softmax(logits, dim=-1, dtype=torch.float32)  # [B, T, V]
    right = torch.log_softmax(taught, dim=-1, dtype=torch.float32)
    per_token = ((right - said) * right.exp()).sum(dim=-1).masked_fill(~batch.label_mask, 0.0)  # [B, T]
    return sums.index_add_(0, batch.task_ids, per_token.double().sum(dim=1))


def measured_values(sums: Tensor, labels: Sequence[str], with_teacher: bool) -> dict[str, float]:
    """Named values of [tasks, len(MEASURED)] sums: those of losses.quality, and `teacher_kl` likewise per task as
    `<label>/teacher_kl` and as the mean over tasks."""
    values = quality_values(sums[:, :-1], labels, with_teacher)
    if not with_teacher or not values:
        return values
    tokens = sums[:, MEASURED.index("tokens")].tolist()
    kl = {
        label: divergence / count
        for label, divergence, count in zip(labels, sums[:, -1].tolist(), tokens, strict=True)
        if count > 0
    }
    values["teacher_kl"] = sum(kl.values()) / len(kl)
    return values | {f"{label}/teacher_kl": value for label, value in kl.items()}


def evaluate_models(
    models: Mapping[str, PreTrainedModel],
    teacher: PreTrainedModel | None,
    batches: Iterable[Batch],
    task_labels: Sequence[str],
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Named values per model (see `measured_values`); every model sees the same batches, the teacher runs once each.

    A model that is the teacher agrees with itself everywhere; without a teacher there is no agreement.
    """
    shown = adapters_of(models)
    same = [name for name, model in models.items() if model is teacher]
    teaches: Shows | None = shown[same[0]] if same else None if teacher is None else adapt(teacher)
    sums = {
        name: torch.zeros(len(task_labels), len(MEASURED), dtype=torch.float64, device=device) for name in models
    }
    for batch in batches:
        for name, value in batch_sums(shown, teaches, batch.to(device), len(task_labels)).items():
            sums[name] += value
    return {name: measured_values(value, task_labels, teaches is not None) for name, value in sums.items()}


def parameter_count(model: PreTrainedModel) -> int:
    """Elements of all parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
