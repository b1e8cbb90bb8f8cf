"""A ParlAI training command -> its options: what the flags say, what --init-opt brings along, and ParlAI's defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_engine.interop.parlai.options.errors import ParlaiError, shown
from distill_engine.interop.parlai.options.flag import Flag
from distill_engine.interop.parlai.options.flags import BY_OPTION, BY_SPELLING
from distill_engine.interop.parlai.options.opt_file import read_opt
from distill_engine.interop.parlai.options.presets import BART_DEFAULTS, PRESETS, zoo_model
from distill_engine.recipe.problem import did_you_mean

_PROGRAM = re.compile(r"(.*[./])?(train_model|multiprocessing_train|distributed_train|train|tm|mp_train)(\.py)?")
_NUMBER = re.compile(r"-\.?\d.*")


@dataclass(frozen=True)
class Options:
    """All options of a command, by ParlAI's names with underscores.

    given      on the command line
    inherited  from --init-opt, or from a model's .opt
    guessed    the .opt that is not at hand, where what is known of a released model stands in
    """

    given: Mapping[str, Any]
    inherited: Mapping[str, Any] = field(default_factory=dict)
    guessed: str | None = None

    def __getitem__(self, option: str) -> Any:
        """The value that ParlAI would use."""
        for layer in (self.given, self.inherited, self._agent_defaults()):
            if option in layer:
                return layer[option]
        return BY_OPTION[option].default

    def stated(self, option: str) -> bool:
        """Whether somebody gave a value."""
        return option in self.given or option in self.inherited

    def _agent_defaults(self) -> Mapping[str, Any]:
        model = str(self.given.get("model", self.inherited.get("model", ""))).lower()
        return BART_DEFAULTS if "bart" in model else {}


def read_command(words: Sequence[str], opt_file: Path | None = None) -> Options:
    """Options of a command; the words before the first flag (`parlai train_model`) may be there or not.

    Flags win over --init-opt, that over `opt_file`. Raises ParlaiError with every word that is not understood, or
    for an --init-opt that is neither a file nor known.
    """
    given = parse_flags(words)
    inherited = {} if opt_file is None else read_opt(opt_file)
    source = given.get("init_opt")
    if source is None:
        return Options(given, inherited)
    brought, guessed = _init_opt(str(source))
    return Options(given, {**inherited, **brought}, guessed)


def parse_flags(words: Sequence[str]) -> dict[str, Any]:
    """Values of the flags among the words of a command. Raises ParlaiError with every problem at once."""
    rest = _without_program(list(words))
    values: dict[str, Any] = {}
    problems: list[str] = []
    while rest:
        word, equals, attached = rest.pop(0).partition("=")
        if word.strip() in ("", "\\") and not equals:  # a line's end that was copied along
            continue
        flag = BY_SPELLING.get(_spelling(word))
        if flag is None:
            problems.append(_unknown(word))
            _drop_value(rest, equals)
            continue
        try:
            values[flag.option] = _value(flag, word, attached if equals else None, rest)
        except ParlaiError as error:
            problems.append(str(error))
    if problems:
        raise ParlaiError("\n  ".join(["This ParlAI command cannot be translated:", *problems]))
    return values


def _without_program(words: list[str]) -> list[str]:
    """Without what starts the program, such as `parlai train_model` or `python -m parlai.scripts.train_model`."""
    if not words or words[0].startswith("-"):
        return words
    first = next((n for n, word in enumerate(words[:6]) if _PROGRAM.fullmatch(word)), None)
    return words if first is None else words[first + 1 :]


def _spelling(word: str) -> str:
    """ParlAI takes _ for - in names of flags."""
    return word.replace("_", "-") if word.startswith("-") else word


def _value(flag: Flag, word: str, attached: str | None, rest: list[str]) -> Any:
    if not flag.takes_value:
        return True if attached is None else flag.value(attached)
    if attached is not None:
        return flag.value(attached)
    if not rest or _spelling(rest[0]) in BY_SPELLING:
        raise ParlaiError(f"{word} has no value behind it. It takes one. Give it, or leave the flag out.")
    return flag.value(rest.pop(0))


def _unknown(word: str) -> str:
    if not word.startswith("-"):
        return f"{shown(word)} follows no flag. A value stands behind its flag; quote a value that holds spaces."
    close = did_you_mean(_spelling(word), BY_SPELLING)
    return f"{word} is no flag of ParlAI's that is known here.{' ' + close if close else ''} Correct or remove it."


def _drop_value(rest: list[str], equals: str) -> None:
    """What stands behind an unknown flag is most likely its value, and no problem of its own."""
    if not equals and rest and (not rest[0].startswith("-") or _NUMBER.fullmatch(rest[0])):
        rest.pop(0)


def _init_opt(source: str) -> tuple[dict[str, Any], str | None]:
    """The options an --init-opt brings along, and its name where they are not read but known."""
    if Path(source).is_file():
        return read_opt(Path(source)), None
    released = zoo_model(source)
    if released is not None:
        return dict(released.options), source
    brought: dict[str, Any] = {}
    for name in source.split(","):
        if name not in PRESETS and not Path(name).is_file():
            raise ParlaiError(
                f"--init-opt is {shown(source)}: {name} is no file here, no released model and no preset that is "
                f"known ({', '.join(PRESETS)}). The command inherits options from it. Give the file's path on this "
                "machine."
            )
        brought |= PRESETS[name] if name in PRESETS else read_opt(Path(name))
    return brought, None
