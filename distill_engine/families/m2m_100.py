"""M2M-100 and NLLB: context LANGUAGE ... END, decoder input END LANGUAGE label; positions are computed buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens
from distill_engine.families.base import BartLike, around, no_language, published, started, written_in
from distill_engine.families.shape import Form
from distill_engine.values import Stack


class M2M100(BartLike):
    """See `protocol.Family`."""

    name = "m2m_100"
    meaning = "M2M-100, NLLB: translation of many languages; languages stand before texts"
    decoder_skips = 1  # the language
    known: Mapping[str, Mapping[str, Any]] = {
        "facebook/nllb-200-1.3B": published(256206, 1024, 8192, 16, 24, 1024),
        "facebook/nllb-200-distilled-600M": published(256206, 1024, 4096, 16, 12, 1024),
    }
    form = Form(position_rows=None, computed=True)

    def unsettled(self, special: SpecialTokens) -> str:
        return no_language(special)

    def towards(self, special: SpecialTokens, language: int) -> SpecialTokens:
        return written_in(special, language)

    def layout(self, special: SpecialTokens, history_end_token: bool = False) -> SequenceLayout:
        del history_end_token
        language = () if special.source is None else (special.source,)
        begun = started(special, default=special.end)
        return around(special, context_prefix=language, context_suffix=(special.end,), decoder_prefix=begun)

    def position_table(self, stack: Stack) -> str | None:
        del stack
        return None


FAMILY = M2M100()
