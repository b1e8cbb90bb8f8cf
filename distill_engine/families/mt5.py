"""mT5: T5 v1.1 with a large vocabulary; the output has a table of its own and no scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_engine.families.t5 import T5


class MT5(T5):
    """See `protocol.Family`."""

    name = "mt5"
    meaning = "mT5: T5 for many languages"
    feed_forward = "gated-gelu"
    known: Mapping[str, Mapping[str, Any]] = {}

    def own_head(self, config: Mapping[str, Any]) -> bool:
        del config  # transformers writes "tied" in every config.json, and published files never are
        return True


FAMILY = MT5()
