"""Blenderbot 90M, ParlAI's first `transformer/generator`: norms where BART has them, learnt positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_engine.families.blenderbot import Blenderbot
from distill_engine.families.shape import Form


class BlenderbotSmall(Blenderbot):
    """See `protocol.Family`."""

    name = "blenderbot-small"
    meaning = "Blenderbot 90M: dialogue; START is never predicted"
    final_norms = ("model.encoder.layernorm_embedding.", "model.decoder.layernorm_embedding.")
    form = Form(scaled_embeddings=True)
    sinusoidal = False
    known: Mapping[str, Mapping[str, Any]] = {}


FAMILY = BlenderbotSmall()
