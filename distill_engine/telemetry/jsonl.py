"""`metrics.jsonl`: the run's own history, one JSON object a line, complete without any service.

A line holds kind, step, seconds, values and, where there are some, text and rows (of texts). JSON has no word for
numbers that are not finite; they are written as the strings "NaN", "Infinity" and "-Infinity", which Python's
`float` and JavaScript's `Number` read back, so that a diverging run can still be told from a missing value.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from distill_engine.cluster.files import replace_text
from distill_engine.telemetry.sinks import CloseStatus, Record, RecordKind

_BLOCK = 65536


class JsonlSink:
    """Appends every record to a file, each handed to the operating system as a whole line before the call returns.

    Lines survive SIGKILL of the process. What a killed process or a full disk left half-written is cut off.
    Raises OSError when the file cannot be written; it then ends with the last whole line, and the same record can be
    written again.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._handle: int | None = _open(self._path)

    def write(self, record: Record) -> None:
        """Appends one line, or nothing."""
        if self._handle is None:  # after an error: the file may have been moved, or its server been away
            self._handle = _open(self._path)
        whole = os.fstat(self._handle).st_size
        try:
            _write_all(self._handle, _line(record))
        except OSError:
            handle, self._handle = self._handle, None
            with suppress(OSError):  # where even that fails, the next `_open` cuts it
                os.ftruncate(handle, whole)
            with suppress(OSError):
                os.close(handle)
            raise

    def rewind(self, step: int) -> None:
        """Forgets what came after `step`, for a run that goes on from its checkpoint at `step`.

        Lines of later steps, and lines that cannot be read, are left out of a new file that replaces the old
        one in one move; a crash leaves either the old or the new file.
        """
        content = self._path.read_bytes()
        kept = b"".join(_line(record) for record in _records(content) if record.step <= step)
        if kept == content:
            return
        replace_text(self._path, kept.decode(), sync=True)
        before, self._handle = self._handle, None
        if before is not None:
            os.close(before)
        self._handle = _open(self._path)

    def close(self, status: CloseStatus) -> None:  # noqa: ARG002 - see the docstring
        """Makes sure that the lines are on disk. How a process ended is no part of a run's history."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_history(path: Path | str) -> list[Record]:
    """The records of a `metrics.jsonl`, in order; lines that are damaged or half-written are passed over."""
    return _records(Path(path).read_bytes())


def _records(content: bytes) -> list[Record]:
    records = (_record(line) for line in content.splitlines())
    return [record for record in records if record is not None]


def _line(record: Record) -> bytes:
    content: dict[str, Any] = {
        "kind": record.kind,
        "step": record.step,
        "seconds": record.seconds,
        "values": {name: _writable(value) for name, value in record.values.items()},
    }
    if record.text:
        content["text"] = record.text
    if record.rows:
        content["rows"] = [dict(row) for row in record.rows]
    return json.dumps(content, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def _writable(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _record(line: bytes) -> Record | None:
    try:
        content = json.loads(line)
        values = {str(name): _number(value) for name, value in content["values"].items()}
        kind, step, seconds = content["kind"], int(content["step"]), float(content["seconds"])
        text = str(content.get("text", ""))
        rows = tuple({str(name): str(cell) for name, cell in row.items()} for row in content.get("rows", ()))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return Record(kind, step, seconds, values, text, rows) if kind in get_args(RecordKind) else None


def _number(value: float | str) -> float:
    return float(value) if isinstance(value, str) else value


def _open(path: Path) -> int:
    """For appending, without a buffer: after an error nothing of ours must reach the file later."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _cut_half_line(handle)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _cut_half_line(handle: int) -> None:
    """Looks at the end only: the file may be large."""
    size = end = os.fstat(handle).st_size
    while end:
        start = max(0, end - _BLOCK)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(handle, end)


def _write_all(handle: int, content: bytes) -> None:
    """A disk that becomes full takes a part first, and refuses the rest."""
    while content:
        content = content[os.write(handle, content) :]
