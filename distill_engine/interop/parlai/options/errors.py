"""The one exception for whatever comes from ParlAI and cannot be used."""

from __future__ import annotations

from typing import Any

_SHOWN_CHARACTERS = 80


class ParlaiError(ValueError):
    """A file or flag of ParlAI's that cannot be used. Its message says what, where, the value, the rule, the fix."""


def shown(value: Any) -> str:
    """`value` as it may stand in a message: its repr, cut to one short line."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
