"""mBART and mBART-50: languages stand around texts.

mBART-50   context LANGUAGE ... END, decoder input END LANGUAGE label: the language is forced, not predicted
mBART      context ... END LANGUAGE, decoder input LANGUAGE label
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens
from distill_engine.families.base import Multilingual, around, published, started
from distill_engine.families.shape import Form


class MBart(Multilingual):
    """See `protocol.Family`."""

    name = "mbart"
    meaning = "mBART, mBART-50: translation; languages stand around texts"
    final_norms = tuple(f"model.{stack}.{norm}." for stack in ("encoder", "decoder")
                        for norm in ("layernorm_embedding", "layer_norm"))  # fmt: skip
    known: Mapping[str, Mapping[str, Any]] = {
        "facebook/mbart-large-50-many-to-many-mmt": published(250054, 1024, 4096, 16, 12, 1024),
    }
    form = Form(outer_norms=2, position_rows=2)

    def layout(self, special: SpecialTokens, history_end_token: bool = False) -> SequenceLayout:
        """mBART-50's where the decoder starts with END, else mBART's."""
        begun = started(special, default=special.end)
        if begun[0] == special.end:
            return super().layout(special, history_end_token)
        language = () if special.source is None else (special.source,)
        return around(special, context_suffix=(special.end, *language), decoder_prefix=begun)


FAMILY = MBart()
