"""ParlAI's text format: one example a line, `key:value` fields between tabs.

    text:hello there<TAB>labels:hi !|good day
    text:bye<TAB>labels:see you<TAB>episode_done:True

`text` and `labels` are required; other fields are ignored. Values may hold `\\n` and `\\t` for a line break and a
tab, and `__PIPE__` for a bar; several labels stand between bars. An episode ends after a line with
`episode_done` (whatever its value: ParlAI takes even `False` for true) and at the end of the file. Empty lines
mean nothing.

ParlAI draws one of several labels each time it meets them, from a stream that depends on everything drawn before.
Here the draw depends on nothing but the line number: the same label in every pass, on every rank and after a
resume, and the same one as target and as history.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.errors import DataError, shown
from distill_engine.data.formats.text_files import numbered_lines

logger = logging.getLogger(__name__)

# ParlAI's own seed of the draw; a constant, so that two runs with different seeds still see the same data.
_LABEL_SEED = 42

_SUSPICIOUS_TURNS = 100


@dataclass(frozen=True)
class Line:
    """One example as the file holds it, values decoded, all labels kept."""

    text: str
    labels: tuple[str, ...]
    ends_episode: bool


def read_parlai_text(path: str) -> Iterator[Episode]:
    """The episodes of a file, in its order.

    Raises DataError with file and line number: a field without colon, no `text`, no `labels`, `eval_labels`
    present; and as `numbered_lines` does.
    """
    ended = 0
    turns: list[Turn] = []
    for number, content in numbered_lines(path):
        if content == "":
            continue
        line = parse_line(content, f"{path}, line {number}")
        turns.append(Turn(line.text, chosen_label(line.labels, number)))
        if line.ends_episode:
            yield Episode(tuple(turns))
            ended, turns = ended + 1, []
    if turns:
        if not ended and len(turns) > _SUSPICIOUS_TURNS:
            logger.warning("%s is one episode of %d turns: is `episode_done` missing?", path, len(turns))
        yield Episode(tuple(turns))


def parse_line(content: str, where: str) -> Line:
    """One non-empty line, `where` being file and line number. Raises DataError as `read_parlai_text`."""
    fields = _fields(content, where)
    if "eval_labels" in fields:
        raise DataError(
            f"{where}: field `eval_labels` in {shown(content)}. Files of every split use `labels`. Rename the field."
        )
    for required in ("text", "labels"):
        if required not in fields:
            raise DataError(
                f"{where}: no field `{required}` in {shown(content)}. Every line needs `text:` and `labels:`, "
                "with a tab between fields. Add it, or remove the line."
            )
    labels = tuple(_decoded(label) for label in fields["labels"].split("|"))
    return Line(_decoded(fields["text"]), labels, bool(fields.get("episode_done", "")))


def chosen_label(labels: Sequence[str], number: int) -> str:
    """The one of a line's labels that is used: a uniform draw that only the line number decides."""
    if len(labels) == 1:
        return labels[0]
    digest = hashlib.blake2b(f"{_LABEL_SEED}/{number}".encode(), digest_size=8).digest()
    return labels[int.from_bytes(digest, "big") % len(labels)]


def as_read_back(value: str) -> str:
    """`value` after being written in this format and read again: escapes that were literal text are decoded."""
    return _decoded(value.replace("\t", "\\t").replace("\n", "\\n").replace("|", "__PIPE__"))


def _fields(content: str, where: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for part in content.split("\t"):
        key, colon, value = part.partition(":")
        if not colon and part.strip():
            raise DataError(
                f"{where}: {shown(part)} is not `key:value`. Fields stand between tabs, each with a colon; a tab "
                "inside a value is written \\t. Correct the line."
            )
        fields[key] = value
    return fields


def _decoded(value: str) -> str:
    return value.replace("\\t", "\t").replace("\\n", "\n").replace("__PIPE__", "|")
