"""What a sequence-to-sequence model must show us, and the lookup of families that can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedModel

from distill_engine.models.bart_family import FAMILIES, BartFamilyAdapter, Family
from distill_engine.values import Batch, FeatureRequest, Features


class Adapter(Protocol):
    """Shows the features of one model.

    Called by both engines once per micro-batch. It is this small because the losses, the student builder and
    the exporter need nothing else of a model: what it shows, the module itself and its family's table.
    """

    model: PreTrainedModel
    family: Family

    def __call__(self, batch: Batch, request: FeatureRequest) -> Features:
        """Run one teacher-forced forward pass and return what was asked."""
        ...


def family_of(config: Mapping[str, Any] | Any) -> Family:
    """The family table for a Hugging Face configuration (mapping or object).

    Raises ValueError for a model type that has no adapter.
    """
    model_type = config.get("model_type") if isinstance(config, Mapping) else config.model_type
    if model_type not in FAMILIES:
        raise ValueError(
            f"model type {model_type!r} has no adapter. Supported families: {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]


def adapt(model: PreTrainedModel) -> nn.Module:
    """The adapter module around a Hugging Face model (see Adapter for what it promises)."""
    return BartFamilyAdapter(model, family_of(model.config))
