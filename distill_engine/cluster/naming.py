"""Long lists in one line. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence


def first_of(names: Sequence[object], most: int) -> str:
    """`a, b and 7 more`: at most so many by name, and how many there are besides."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
