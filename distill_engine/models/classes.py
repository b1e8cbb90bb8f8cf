"""transformers' classes for a configuration."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PretrainedConfig, PreTrainedModel

from distill_engine.families.lookup import family_of


def auto_class(config: PretrainedConfig) -> Any:
    """The class that loads models of this configuration's family."""
    return getattr(transformers, family_of(config).auto_class)


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The model's own class. Raises ValueError for a model type of no family."""
    found: type[PreTrainedModel] = auto_class(config)._model_mapping[type(config)]
    return found
