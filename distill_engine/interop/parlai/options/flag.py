"""One flag of ParlAI's command line: its spellings, the kind of its value, its default, and what it is here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill_engine.interop.parlai.options.errors import ParlaiError, shown

_TRUE, _FALSE = ("yes", "true", "t", "1", "y"), ("no", "false", "f", "n", "0")


@dataclass(frozen=True)
class Flag:
    """A flag of `parlai train_model`, or of an agent, task or dictionary that it may load.

    name     long spelling without dashes, words joined by `-`
    kind     key of `KINDS`
    default  ParlAI's value when nobody gives one
    here     recipe keys it becomes, separated by spaces; empty when there is no equivalent
    why      without equivalent: the reason; with one: what differs, if anything
    short    other spellings, dashes included
    """

    name: str
    kind: str
    default: Any
    here: str = ""
    why: str = ""
    short: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """Its name in `.opt` files."""
        return self.name.replace("-", "_")

    @property
    def takes_value(self) -> bool:
        """Whether a value follows on the command line."""
        return self.kind != "switch"

    def value(self, text: str) -> Any:
        """A value as the command line spells it. Raises ParlaiError if it is not of the flag's kind."""
        try:
            return KINDS[self.kind](text)
        except ValueError as error:
            raise ParlaiError(
                f"--{self.name} is {shown(text)}; it takes {_EXPECTED[self.kind]}. Correct the flag."
            ) from error


def _boolean(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError(text)
    return text.lower() in _TRUE


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _weights(text: str) -> list[float] | str:
    return text if text == "stochastic" else _floats(text)


def _or_none(text: str) -> str | None:
    return None if text.lower() == "none" else text


KINDS: dict[str, Callable[[str], Any]] = {
    "bool": _boolean,
    "int": int,
    "float": float,
    "floats": _floats,
    "weights": _weights,
    "text": str,
    "text or none": _or_none,
    "switch": _boolean,
}
_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "floats": "numbers separated by commas",
    "weights": "numbers separated by commas, or stochastic",
    "text": "a text",
    "text or none": "a text, or none",
    "switch": "no value",
}


def becomes(name: str, kind: str, default: Any, here: str, *short: str, differs: str = "") -> Flag:
    """A flag with an equivalent."""
    return Flag(name, kind, default, here, differs, short)


def has_none(name: str, kind: str, default: Any, why: str, *short: str) -> Flag:
    """A flag without one."""
    return Flag(name, kind, default, "", why, short)
