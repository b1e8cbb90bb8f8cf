"""What is known of ParlAI's option presets and of the released models that commands name by a path or `zoo:`.

Only options that decide a recipe are listed. A model's own .opt, where it is at hand, is read instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

_BLENDERBOT_TEXT = {
    "text_truncate": 128,
    "label_truncate": 128,
    "truncate": 128,
    "n_positions": 128,
    "delimiter": "  ",
    "history_add_global_end_token": "end",
    "dict_tokenizer": "bytelevelbpe",
}
_BLENDERBOT_NETWORK = {
    "activation": "gelu",
    "variant": "prelayernorm",
    "n_heads": 32,
    "n_encoder_layers": 2,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "relu_dropout": 0.0,
}
_BLENDERBOT_TRAINING = {"optimizer": "adam", "multitask_weights": [1.0, 3.0, 3.0, 3.0]}

# The arguments that ParlAI's bart agents have by default, in place of the transformer's.
BART_DEFAULTS: dict[str, Any] = {
    "embedding_size": 1024,
    "ffn_size": 4096,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "n_heads": 16,
    "n_positions": 1024,
    "variant": "bart",
    "activation": "gelu",
    "n_encoder_layers": 12,
    "n_decoder_layers": 12,
    "force_fp16_tokens": True,
    "fp16": True,
    "dict_tokenizer": "gpt2",
    "embeddings_scale": False,
    "learn_positional_embeddings": True,
}

# --init-opt also takes the name of a preset.
PRESETS: dict[str, dict[str, Any]] = {
    "arch/blenderbot_3B": {
        "model": "transformer/generator",
        "activation": "gelu",
        "variant": "prelayernorm",
        "attention_dropout": 0.0,
        "relu_dropout": 0.0,
        "embedding_size": 2560,
        "ffn_size": 10240,
        "n_heads": 32,
        "n_encoder_layers": 2,
        "n_decoder_layers": 24,
        "n_positions": 128,
        "truncate": 128,
        "text_truncate": 128,
        "label_truncate": 128,
    },
    "arch/bart_large": {**BART_DEFAULTS, "model": "bart", "attention_dropout": 0.0},
    "gen/blenderbot": {
        "beam_context_block_ngram": 3,
        "beam_block_ngram": 3,
        "beam_size": 10,
        "inference": "beam",
        "beam_min_length": 20,
        "beam_block_full_context": False,
    },
}


@dataclass(frozen=True)
class ZooModel:
    """A released model: its name at Hugging Face, and the options of its training that are known."""

    hub: str
    options: dict[str, Any] = field(default_factory=dict)


def _blender(hub: str, width: int, decoder_layers: int) -> ZooModel:
    sizes = {"embedding_size": width, "ffn_size": 4 * width, "n_decoder_layers": decoder_layers}
    own = {"model": "transformer/generator", **sizes}
    return ZooModel(hub, {**own, **_BLENDERBOT_NETWORK, **_BLENDERBOT_TEXT, **_BLENDERBOT_TRAINING})


ZOO: dict[str, ZooModel] = {
    "blender/blender_3B": _blender("facebook/blenderbot-3B", 2560, 24),
    "blender/blender_1Bdistill": _blender("facebook/blenderbot-1B-distill", 2560, 12),
    "blender/blender_400Mdistill": _blender("facebook/blenderbot-400M-distill", 1280, 12),
    "bart/bart_large": ZooModel("facebook/bart-large", {**BART_DEFAULTS, "model": "bart", "attention_dropout": 0.0}),
}
_ZOO_PATH = re.compile(r"(?:.*/|zoo:)?(?P<name>[^/:]+/[^/:]+)/model(?:\.opt)?")


def zoo_model(path: str) -> ZooModel | None:
    """The released model that a path such as data/models/blender/blender_3B/model or zoo:... means, if it is known."""
    found = _ZOO_PATH.fullmatch(path)
    return ZOO.get(found["name"]) if found else None
