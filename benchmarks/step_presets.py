"""What benchmarks/step.py times, and the arithmetic that no implementation of it can leave out."""

from __future__ import annotations

from dataclasses import dataclass

from distill_engine.families.lookup import fresh_shape
from distill_engine.families.shape import Shape, Sizes

GIGA = 1e9


@dataclass(frozen=True)
class Size:
    """One model of the pair."""

    width: int
    ffn_width: int
    encoder_layers: int
    decoder_layers: int


@dataclass(frozen=True)
class Preset:
    """What is timed: TinyBERT-style Blenderbot, every example full, so that no token is padding.

    threads  per process; None leaves torch's choice
    """

    teacher: Size
    student: Size
    heads: int
    vocabulary: int
    batch: int
    context_tokens: int
    label_tokens: int
    definition: str
    threads: int | None = None
    warm_up: int = 3
    steps: int = 15

    def sizes(self, model: Size) -> Sizes:
        """As the engine's families take them."""
        layers = model.encoder_layers, model.decoder_layers
        return Sizes(*layers, model.width, model.ffn_width, self.heads, self.context_tokens)

    def shape(self, model: Size) -> Shape:
        """As the plan counts it."""
        return fresh_shape("blenderbot", self.vocabulary, self.sizes(model))


PRESETS = {
    "parlai_cpu": Preset(
        Size(512, 2048, 2, 12), Size(256, 1024, 2, 6), heads=8, vocabulary=8008, batch=16, context_tokens=128,
        label_tokens=32, definition="parlai", threads=2,
    ),
    "demo": Preset(
        Size(96, 256, 2, 6), Size(48, 128, 2, 2), heads=4, vocabulary=1024, batch=16, context_tokens=128,
        label_tokens=32, definition="invariant", steps=30,
    ),
    "bb3b_1gpu": Preset(
        Size(2560, 10240, 2, 24), Size(2560, 10240, 2, 9), heads=32, vocabulary=8008, batch=16, context_tokens=128,
        label_tokens=128, definition="parlai", warm_up=4, steps=10,
    ),
    "bb3b_tiny": Preset(
        Size(32, 64, 2, 24), Size(32, 64, 2, 9), heads=2, vocabulary=64, batch=2, context_tokens=16, label_tokens=16,
        definition="parlai", threads=1, warm_up=1, steps=2,
    ),
    "tiny": Preset(
        Size(32, 64, 1, 2), Size(16, 32, 1, 1), heads=2, vocabulary=64, batch=4, context_tokens=16, label_tokens=8,
        definition="invariant", threads=1, warm_up=1, steps=3,
    ),
}  # fmt: skip
WEIGHTS = {"task": 1, "embedding": 4, "hidden": 64, "self_attention": 4, "cross_attention": 64, "prediction": 64}


def arithmetic_gflop(preset: Preset) -> float:
    """Matrix products of one step of one rank, in units of 10^9 multiplications or additions.

    Teacher forward, student and projections forward and twice that backward (gradients of inputs and of weights).
    Everything that is no matrix product counts as nothing, and so do the score products of the attention terms,
    because the models' own attentions compute the same scores.
    """
    trained = _forward_gflop(preset, preset.student) + _projection_gflop(preset)
    return _forward_gflop(preset, preset.teacher) + 3 * trained


def _forward_gflop(preset: Preset, size: Size) -> float:
    contexts, labels = preset.batch * preset.context_tokens, preset.batch * preset.label_tokens
    square, ffn = size.width**2, 2 * size.width * size.ffn_width
    causal_keys = (preset.label_tokens + 1) / 2  # mean over queries
    encoder_layer = contexts * (4 * square + ffn + 2 * preset.context_tokens * size.width)
    decoder_layer = labels * (6 * square + ffn + 2 * (causal_keys + preset.context_tokens) * size.width)
    cross_keys = contexts * 2 * square
    logits = labels * size.width * preset.vocabulary
    pairs = size.encoder_layers * encoder_layer + size.decoder_layers * (decoder_layer + cross_keys) + logits
    return 2 * pairs / GIGA


def _projection_gflop(preset: Preset) -> float:
    """One map for the embeddings and for the hidden states of every layer, in either stack."""
    student, teacher = preset.student, preset.teacher
    contexts, labels = preset.batch * preset.context_tokens, preset.batch * preset.label_tokens
    tokens = contexts * (1 + student.encoder_layers) + labels * (1 + student.decoder_layers)
    return 2 * tokens * student.width * teacher.width / GIGA
