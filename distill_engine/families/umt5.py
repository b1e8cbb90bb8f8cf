"""umT5: mT5 with a position bias in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_engine.families.shape import Form
from distill_engine.families.t5 import T5


class UMT5(T5):
    """See `protocol.Family`."""

    name = "umt5"
    meaning = "umT5: T5 for many languages, a position bias in every layer"
    feed_forward = "gated-gelu"
    known: Mapping[str, Mapping[str, Any]] = {}
    form = Form(biases=False, norm=1, position_rows=None, bias_tables="all")


FAMILY = UMT5()
