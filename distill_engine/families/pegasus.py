"""Pegasus: computed positions, decoding starts with PAD, a norm at the end of each stack."""

from __future__ import annotations

from distill_engine.families.base import BartLike
from distill_engine.families.shape import Form


class Pegasus(BartLike):
    """See `protocol.Family`."""

    name = "pegasus"
    meaning = "Pegasus: summaries"
    form = Form(computed=True)


FAMILY = Pegasus()
