"""Sizes of the two models, from a recipe and the teacher's config.json; counted without torch."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_engine.recipe.problem import Problem, RecipeError
from distill_engine.recipe.schema import Recipe

_NORM = 2  # weight and bias
_BART_EXTRA_POSITIONS = 2
# Sizes that the models' public config.json files give, so that a login node without network can plan.
_KNOWN: dict[str, tuple[str, int, int, int, int, int, int, int]] = {
    #   name                                family  vocab width   ffn heads enc dec positions
    "facebook/blenderbot-3B": ("blenderbot", 8008, 2560, 10240, 32, 2, 24, 128),
    "facebook/blenderbot-1B-distill": ("blenderbot", 8008, 2560, 10240, 32, 2, 12, 128),
    "facebook/blenderbot-400M-distill": ("blenderbot", 8008, 1280, 5120, 32, 2, 12, 128),
    "facebook/bart-large": ("bart", 50265, 1024, 4096, 16, 12, 12, 1024),
    "facebook/bart-base": ("bart", 50265, 768, 3072, 12, 6, 6, 1024),
}


@dataclass(frozen=True)
class ModelShape:
    """An encoder-decoder of the BART family; the two embeddings and the output layer are one table."""

    family: str
    vocab: int
    width: int
    ffn: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    positions: int

    @property
    def encoder_layer(self) -> int:
        """Parameters of one encoder layer: self-attention, two norms, feed-forward."""
        return self._attention + 2 * _NORM * self.width + self._feed_forward

    @property
    def decoder_layer(self) -> int:
        """Parameters of one decoder layer: two attentions, three norms, feed-forward."""
        return 2 * self._attention + 3 * _NORM * self.width + self._feed_forward

    @property
    def embedding(self) -> int:
        """Parameters of the token table."""
        return self.vocab * self.width

    @property
    def position_tables(self) -> int:
        """Parameters of the position tables of both stacks."""
        extra = _BART_EXTRA_POSITIONS if self.family == "bart" else 0
        return 2 * (self.positions + extra) * self.width

    @property
    def parameters(self) -> int:
        """All of them. Blenderbot norms each stack's end, BART each stack's embeddings: as many either way."""
        layers = self.encoder_layers * self.encoder_layer + self.decoder_layers * self.decoder_layer
        return self.embedding + self.position_tables + layers + 2 * _NORM * self.width

    @property
    def tensors(self) -> dict[int, int]:
        """Elements of a tensor -> how many tensors have so many, all parameters together."""
        layers, decoder = self.encoder_layers + self.decoder_layers, self.decoder_layers
        attentions = layers + decoder
        found: Counter[int] = Counter()
        found[self.embedding] += 1
        found[self.position_tables // 2] += 2
        found[self.width * self.width] += 4 * attentions
        found[self.width * self.ffn] += 2 * layers
        found[self.ffn] += layers
        norms = 2 * layers + decoder + 2
        found[self.width] += 4 * attentions + layers + _NORM * norms
        return found

    @property
    def _attention(self) -> int:
        return 4 * (self.width * self.width + self.width)

    @property
    def _feed_forward(self) -> int:
        return 2 * self.width * self.ffn + self.ffn + self.width


def teacher_shape(recipe: Recipe) -> ModelShape | None:
    """None without a teacher. Raises RecipeError if its sizes cannot be found on this machine."""
    path = recipe.teacher.path
    if path is None:
        return None
    config = _config_of(path, recipe.teacher.revision)
    if config is not None:
        return _shape_of(config, path)
    if path in _KNOWN:
        return ModelShape(*_KNOWN[path])
    what = f"is {path!r}: its config.json is neither in a folder of that name nor in the Hugging Face cache"
    fix = f"Download it, or name one whose sizes are known: {', '.join(_KNOWN)}"
    raise RecipeError("teacher.path", [Problem("teacher.path", what, "A plan needs the teacher's sizes", fix)])


def student_shape(recipe: Recipe, teacher: ModelShape | None) -> ModelShape:
    """The recipe's sizes; those left out are the teacher's. Raises RecipeError when one is given by neither."""
    given = recipe.student
    sizes: dict[str, Any] = {
        "family": given.family,
        "vocab": None if teacher else _vocabulary(recipe),
        "width": given.width,
        "ffn": given.ffn_width,
        "heads": given.heads,
        "encoder_layers": given.encoder_layers,
        "decoder_layers": given.decoder_layers,
        "positions": given.positions,
    }
    for name, value in sizes.items():
        if value is None and teacher is not None:
            sizes[name] = getattr(teacher, name)
    missing = [name for name, value in sizes.items() if value is None]
    if missing:
        problems = [
            Problem(f"student.{name}", "is not given, and there is no teacher to take it from") for name in missing
        ]
        raise RecipeError("student", problems)
    return ModelShape(**sizes)


def _config_of(path: str, revision: str | None) -> Mapping[str, Any] | None:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{path.replace('/', '--')}" / "snapshots"
    for file in (Path(path) / "config.json", *sorted(hub.glob(f"{revision or '*'}/config.json"))):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            return config
    return None


def _shape_of(config: Mapping[str, Any], path: str) -> ModelShape:
    names = ["vocab_size", "d_model", "decoder_ffn_dim", "decoder_attention_heads"]
    names += ["encoder_layers", "decoder_layers", "max_position_embeddings"]
    missing = [name for name in ("model_type", *names) if name not in config]
    if missing:
        what = f"is {path!r}, whose config.json lacks {', '.join(missing)}"
        raise RecipeError("teacher.path", [Problem("teacher.path", what, "It is the file that save_pretrained writes")])
    return ModelShape(str(config["model_type"]), *(int(config[name]) for name in names))


def _vocabulary(recipe: Recipe) -> int | None:
    """Entries of the tokenizer's file; None where there is none on this machine."""
    file = Path(recipe.data.tokenizer or "") / "tokenizer.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return len(content["model"]["vocab"]) + len(
            {one["content"] for one in content.get("added_tokens", [])} - set(content["model"]["vocab"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
