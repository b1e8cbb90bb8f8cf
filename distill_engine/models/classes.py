"""transformers' classes for a configuration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from distill_engine.families.lookup import family_of, introduce


def untie(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Give tied parameters (of linear maps) tensors of their own, with random values."""
    for name in names:
        if model.all_tied_weights_keys.pop(name, None) is not None:
            module: Any = model.get_submodule(name.rpartition(".")[0])
            own = torch.empty_like(module.weight)
            torch.nn.init.normal_(own, std=own.shape[1] ** -0.5)
            module.weight = torch.nn.Parameter(own)


def config_of(folder: Path) -> PretrainedConfig:
    """The configuration object of a model's folder. Raises OSError or ValueError for one that cannot be read."""
    introduce(PretrainedConfig.get_config_dict(folder)[0])
    found: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return found


def auto_class(config: PretrainedConfig) -> Any:
    """The class that loads models of this configuration's family."""
    return getattr(transformers, family_of(config).auto_class)


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The model's own class. Raises ValueError for a model type of no family."""
    found: type[PreTrainedModel] = auto_class(config)._model_mapping[type(config)]
    return found
