"""M2M-100 and NLLB: context LANGUAGE ... END, decoder input END LANGUAGE label; positions are computed buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_engine.families.base import Multilingual, published
from distill_engine.families.shape import Form
from distill_engine.values import Stack


class M2M100(Multilingual):
    """See `protocol.Family`."""

    name = "m2m_100"
    meaning = "M2M-100, NLLB: translation of many languages; languages stand before texts"
    known: Mapping[str, Mapping[str, Any]] = {
        "facebook/nllb-200-1.3B": published(256206, 1024, 8192, 16, 24, 1024),
        "facebook/nllb-200-distilled-600M": published(256206, 1024, 4096, 16, 12, 1024),
    }
    form = Form(position_rows=None, computed=True)

    def position_table(self, stack: Stack) -> str | None:
        del stack
        return None


FAMILY = M2M100()
