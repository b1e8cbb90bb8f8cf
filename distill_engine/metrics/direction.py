"""Which way a metric is better."""

from __future__ import annotations

from typing import Literal

Direction = Literal["min", "max"]


def at_least_as_good(value: float, other: float, direction: Direction) -> bool:
    """Whether `value` is better than `other` or equal to it."""
    return value <= other if direction == "min" else value >= other


def known_direction(direction: str) -> Direction:
    """The direction itself; ValueError if it is neither `min` nor `max`."""
    if direction == "min":
        return "min"
    if direction == "max":
        return "max"
    raise ValueError(f"direction is {direction!r}; it says which way a metric is better: use 'min' or 'max'.")
