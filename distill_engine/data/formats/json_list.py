"""A JSON list read entry by entry: a file of hundreds of megabytes never is in memory as a whole."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO

from distill_engine.data.errors import DataError, shown
from distill_engine.data.formats.text_files import open_for_reading

LONGEST_ENTRY_CHARACTERS = 64 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_NUMBER_GOES_ON = frozenset("0123456789.eE+-")

_RULE = "The file is one JSON list in UTF-8. It may be cut off or changed: download it again, or correct it."


def json_list(path: str, what: str = "entry") -> Iterator[tuple[str, object]]:
    """Every entry of the list with its place (`file, line N, <what> K`), in order.

    Raises DataError with file, line and character: no such file, empty, not UTF-8, not JSON, not a list, cut off, an
    entry above `LONGEST_ENTRY_CHARACTERS`, anything after the list.
    """
    with open_for_reading(path) as file:
        window = _Window(path, file)
        if window.next_mark() == "":
            raise DataError(f"{path} is empty. {_RULE}")
        window.expect("[")
        number = 0
        while window.next_mark() != "]":
            if number:
                window.expect(",")
            number += 1
            window.next_mark()
            where = f"{path}, line {window.line}, {what} {number}"
            yield where, window.value(where)
        window.expect("]")
        if rest := window.next_mark():
            raise window.error(f"{shown(rest)} after the end of the list")


class _Window:
    """The part of a file between what was read and what was understood."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.line = 1
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._json = json.JSONDecoder()
        self._text, self._at, self._passed, self._ended = "", 0, 0, False

    def next_mark(self) -> str:
        """The next character that is not white space, without going past it; empty at the end of the file."""
        while True:
            start = self._at
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            self.line += self._text.count("\n", start, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def expect(self, mark: str) -> None:
        """Go past `mark`, which must come next. Raises DataError."""
        found = self.next_mark()
        if found != mark:
            what = f"{shown(found)} instead of {mark!r}" if found else f"the file ends where {mark!r} should come"
            raise self.error(what)
        self._at += 1

    def value(self, where: str) -> object:
        """The JSON value that comes next. Raises DataError."""
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                waiting = len(self._text) - self._at
                if self._ended or waiting > LONGEST_ENTRY_CHARACTERS or isinstance(error, RecursionError):
                    raise self._not_json(error, where) from error
            else:
                # at the end of what was read a number may only seem to be complete: 1 of 1.5, or of 1e3
                if self._ended or (end < len(self._text) and self._text[end] not in _NUMBER_GOES_ON):
                    self.line += self._text.count("\n", self._at, end)
                    self._at = end
                    return value
            self._more()

    def error(self, what: str) -> DataError:
        """`what` is wrong with the next character."""
        return DataError(f"{self._path}, line {self.line}, character {self._passed + self._at + 1}: {what}. {_RULE}")

    def _not_json(self, error: Exception, where: str) -> DataError:
        at = getattr(error, "pos", self._at)
        line = self.line + self._text.count("\n", self._at, at)
        reason = getattr(error, "msg", str(error))
        begins = shown(self._text[self._at : self._at + 60])
        return DataError(
            f"{where}: not JSON ({reason} at line {line}, character {self._passed + at + 1}), begins with {begins}. "
            f"{_RULE}"
        )

    def _more(self) -> None:
        """Read on; what was understood is dropped. Reads at least as much as waits, so a long entry is cheap."""
        raw = self._file.read(max(_CHUNK_BYTES, len(self._text) - self._at))
        self._ended = raw == b""
        try:
            fresh = self._decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            line = self.line + self._text.count("\n", self._at) + before.count(b"\n")
            near = shown(error.object[max(0, error.start - 20) : error.start + 20])
            raise DataError(f"{self._path}, line {line}: not UTF-8, near {near}. {_RULE}") from error
        self._passed += self._at
        self._text = self._text[self._at :] + fresh
        self._at = 0
