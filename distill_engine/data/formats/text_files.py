"""Numbered lines of a UTF-8 file, with every way that this can fail said clearly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from distill_engine.data.errors import DataError, shown

LONGEST_LINE_BYTES = 16 * 1024 * 1024

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def numbered_lines(path: str) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without their line break (`\\n`, or `\\r\\n` as Windows writes it).

    Raises DataError: no such file, a folder, not readable, empty, not UTF-8, a line above `LONGEST_LINE_BYTES`.
    """
    with open_for_reading(path) as file:
        number = 0
        while raw := file.readline(LONGEST_LINE_BYTES + 1):
            number += 1
            if len(raw) > LONGEST_LINE_BYTES:
                raise DataError(
                    f"{path}, line {number}: longer than {LONGEST_LINE_BYTES // 2**20} MiB, begins with "
                    f"{shown(raw)}. These formats hold one example or one conversation a line. "
                    "Check the format and the line breaks."
                )
            if number == 1:
                raw = raw.removeprefix(_BYTE_ORDER_MARK)
            yield number, _decoded(raw, path, number).removesuffix("\n").removesuffix("\r")
    if number == 0:
        raise DataError(f"{path} is empty. A data file holds at least one example. Write it again or name another.")


def open_for_reading(path: str) -> BinaryIO:
    """The file, open for binary reading. Raises DataError when it is missing, a folder or unreadable."""
    place = Path(path).expanduser()
    try:
        return place.open("rb")
    except FileNotFoundError as error:
        raise DataError(
            f"There is no file {path} (working folder: {Path.cwd()}). Relative paths start at the working folder. "
            "Correct the path in data.datasets."
        ) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a file. Name the file of one split in data.datasets.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path and its permissions.") from error


def _decoded(raw: bytes, path: str, number: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        around = raw[max(0, error.start - 20) : error.start + 20]
        raise DataError(
            f"{path}, line {number}, byte {error.start + 1}: not UTF-8, near {shown(around)}. "
            "Data files are UTF-8. Convert it, for example with `iconv -f LATIN1 -t UTF-8`."
        ) from error
