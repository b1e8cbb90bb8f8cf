"""The one exception of the data layer, and how it shows a value."""

from __future__ import annotations

_SHOWN_CHARACTERS = 80


class DataError(ValueError):
    """Data that cannot be used as it is. The message says what, where, the value, the rule and what to do."""


def shown(value: object) -> str:
    """`value` as it may stand in a message: its repr, cut to one short line."""
    text = repr(value[: _SHOWN_CHARACTERS + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
