"""Measures finished models: teacher-forced quality on a data set, beside their teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from distill_engine.losses.quality import COLUMNS, quality_sums, quality_values
from distill_engine.models.adapter import adapt
from distill_engine.values import Batch, FeatureRequest


class ModelError(ValueError):
    """A model folder cannot be used."""


def load_model(folder: str | Path, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model in eval mode. Raises ModelError with the reason if it cannot be loaded."""
    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {str(folder)!r} cannot be loaded: {reason} Give a folder written by save_pretrained (a run's "
            "`best`), or a name on the Hugging Face Hub."
        ) from error
    return model.to(device).eval()


@torch.no_grad()
def evaluate_models(
    models: Mapping[str, PreTrainedModel],
    teacher: PreTrainedModel | None,
    batches: Iterable[Batch],
    task_labels: Sequence[str],
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Named values per model (see losses.quality); every model sees the same batches, the teacher runs once each.

    A model that is the teacher agrees with itself everywhere; without a teacher there is no agreement.
    """
    shown = {name: adapt(model) for name, model in models.items()}
    teaches = None if teacher is None else adapt(teacher)
    sums = {
        name: torch.zeros(len(task_labels), len(COLUMNS), dtype=torch.float64, device=device) for name in models
    }
    request = FeatureRequest()
    for batch in batches:
        batch = batch.to(device)
        taught: Tensor | None = None if teaches is None else teaches(batch, request).logits
        for name, adapter in shown.items():
            logits = adapter(batch, request).logits
            sums[name] += quality_sums(logits, taught, batch, len(task_labels))
    return {name: quality_values(value, task_labels, teaches is not None) for name, value in sums.items()}


def parameter_count(model: PreTrainedModel) -> int:
    """Elements of all parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
