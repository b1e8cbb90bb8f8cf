"""Values taken out of decoded JSON (or out of a dataset's rows), each with its place for the message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_engine.data.errors import DataError, shown


def checked_text(value: object, where: str, name: str, shape: str) -> str:
    """`value` if it is a text that a tokenizer can hold. Raises DataError with `where`, the field and the shape."""
    if not isinstance(value, str):
        raise DataError(f"{where}: no string under `{name}`: {shown(value)}. {shape}")
    try:
        # JSON can escape half a surrogate pair, which no UTF-8 text and no tokenizer can hold.
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: half a surrogate pair in {shown(value)}. Text must be valid Unicode. Remove the \\u escape."
        ) from error
    return value


class Record:
    """One object of a file. `where` is its place, `shape` a sentence that says what the format looks like."""

    def __init__(self, value: object, where: str, shape: str) -> None:
        """Raises DataError when `value` is not an object."""
        if not isinstance(value, Mapping):
            raise DataError(f"{where}: not an object but {shown(value)}. {shape}")
        self._values: Mapping[str, Any] = value
        self.where = where
        self._shape = shape

    def text(self, key: str, default: str | None = None) -> str:
        """The text under `key`; `default` where the key is absent or null. Raises DataError."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        return checked_text(value, self.where, key, self._shape)

    def number(self, key: str) -> int:
        """The whole number under `key`, which may be written as text. Raises DataError."""
        value = self._values.get(key)
        try:
            return int(value)  # type: ignore[arg-type]  # whatever is no number raises
        except (TypeError, ValueError) as error:
            raise self.wrong(f"no whole number under `{key}`: {shown(value)}") from error

    def items(self, key: str) -> list[Any]:
        """The list under `key`, whatever it holds. Raises DataError."""
        value = self._values.get(key)
        if not isinstance(value, list):
            raise self.wrong(f"no list under `{key}`: {shown(value)}")
        return value

    def texts(self, key: str, at_least: int = 0) -> list[str]:
        """The list of texts under `key`. Raises DataError, also when it has fewer than `at_least`."""
        texts = [checked_text(text, self.where, key, self._shape) for text in self.items(key)]
        if len(texts) < at_least:
            raise self.wrong(f"`{key}` holds {len(texts)} texts where {at_least} are needed")
        return texts

    def records(self, key: str) -> list[Record]:
        """The list of objects under `key`; an object of equally long lists counts as one. Raises DataError."""
        value = self._values.get(key)
        if isinstance(value, Mapping) and all(isinstance(column, list) for column in value.values()):
            value = _rows(value)
        if not isinstance(value, list):
            raise self.wrong(f"no list under `{key}`: {shown(value)}")
        return [Record(one, f"{self.where}, {key} {number}", self._shape) for number, one in enumerate(value, 1)]

    def wrong(self, what: str) -> DataError:
        """The error that says `what` is wrong with this object."""
        return DataError(f"{self.where}: {what}. {self._shape}")


def _rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Older Arrow files store a list of objects as an object of lists."""
    rows = max((len(column) for column in columns.values()), default=0)
    return [{key: column[row] for key, column in columns.items() if row < len(column)} for row in range(rows)]
