"""Marian (opus-mt): computed positions, decoding starts with PAD, encoder and decoder may have tables of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from distill_engine.families.base import BartLike, published
from distill_engine.families.shape import Form, Shape


class Marian(BartLike):
    """See `protocol.Family`."""

    name = "marian"
    meaning = "Marian, opus-mt: translation of one pair of languages"
    final_norms = ()
    known: Mapping[str, Mapping[str, Any]] = {
        "Helsinki-NLP/opus-mt-en-de": published(58101, 512, 2048, 8, 6, 512),
    }
    form = Form(outer_norms=0, computed=True)

    def shape(self, config: Mapping[str, Any]) -> Shape:
        whole = super().shape(config)
        vocabulary = whole.vocab
        if config.get("share_encoder_decoder_embeddings", True):
            return whole
        own = int(config.get("decoder_vocab_size") or vocabulary)
        heads = (own,) if config.get("tie_word_embeddings") is False else ()
        return replace(whole, vocab=own, token_tables=(vocabulary, own, *heads))


FAMILY = Marian()
