"""What is wrong with a recipe, in one shape: what - where - the value - the rule - what to do.

Problems are collected, never raised one by one, so that a person repairs a recipe in one go.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Problem:
    """One thing to repair.

    path  dotted key (`losses.weights.hidden`), empty for the file as a whole
    what  what is wrong with it, as the continuation of `<path> ...`, value included
    rule  the rule that it breaks, a sentence
    fix   what to do, a sentence
    line  1-based line of the YAML file, where known
    """

    path: str
    what: str
    rule: str = ""
    fix: str = ""
    line: int | None = None

    def __str__(self) -> str:
        """`[line N: ]path what. Rule. What to do.`"""
        place = f"line {self.line}: " if self.line else ""
        head = f"{place}{self.path} {self.what}" if self.path else f"{place}{self.what}"
        return " ".join(_sentence(part) for part in (head, self.rule, self.fix) if part)


class RecipeError(ValueError):
    """A recipe that cannot be used; `problems` has all of them, `source` names the file."""

    def __init__(self, source: Path | str, problems: Sequence[Problem]) -> None:
        """Join all problems into one text, the file's name on top."""
        self.source = str(source)
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  - {problem}" for problem in self.problems)]))


def raise_if_any(source: Path | str, problems: Iterable[Problem]) -> None:
    """Do nothing when there is no problem.

    Raises RecipeError with all of them otherwise.
    """
    found = list(problems)
    if found:
        raise RecipeError(source, found)


def shown(value: Any) -> str:
    """A value as it stands in a message, cut to a readable length."""
    constant = value is None or isinstance(value, bool)
    text = {None: "null", True: "true", False: "false"}[value] if constant else repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean X?`, or an empty text when nothing known is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else ""


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", ".)")) else text + "."
