"""`metrics.jsonl`: the run's own history, one JSON object a line, complete without any service.

A line holds kind, step, seconds, values and, where there are some, text and rows (of texts). JSON has no word for
numbers that are not finite; they are written as the strings "NaN", "Infinity" and "-Infinity", which Python's
`float` and JavaScript's `Number` read back, so that a diverging run can still be told from a missing value.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, get_args

from distill_engine.telemetry.sinks import CloseStatus, Record, RecordKind


class JsonlSink:
    """Appends every record to a file, each flushed to the operating system before the call returns.

    Lines survive SIGKILL of the process. What a killed process left half-written is cut off on opening.
    Raises OSError when the file cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _cut_half_line(self._path)
        self._file = self._path.open("ab")

    def write(self, record: Record) -> None:
        """Appends one line."""
        self._file.write(_line(record))
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Forgets what came after `step`, for a run that goes on from its checkpoint at `step`.

        Lines of later steps, and lines that cannot be read, are left out of a new file that replaces the old
        one in one move; a crash leaves either the old or the new file.
        """
        kept = [_line(record) for record in read_history(self._path) if record.step <= step]
        _replace(self._path, b"".join(kept))
        self._file.close()
        self._file = self._path.open("ab")

    def close(self, status: CloseStatus) -> None:  # noqa: ARG002 - see the docstring
        """Makes sure that the lines are on disk. How a process ended is no part of a run's history."""
        os.fsync(self._file.fileno())
        self._file.close()


def read_history(path: Path | str) -> list[Record]:
    """The records of a `metrics.jsonl`, in order; lines that are damaged or half-written are passed over."""
    records = (_record(line) for line in Path(path).read_bytes().splitlines())
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


def _cut_half_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
