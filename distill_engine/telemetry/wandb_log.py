"""What W&B was given by the starts of a run so far, from the transaction logs that its service leaves in the folder.

A start has a folder `wandb/[offline-]run-<date>-<id>` with a log `run-<id>.wandb`: a header of 7 bytes, then LevelDB's
log format (records in blocks of 32 KiB) with a protobuf message in each record. A killed service leaves it torn.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from distill_engine.telemetry.sinks import Record

SAMPLES_TABLE = "valid/samples"
_HEADER, _BLOCK, _PREFIX = 7, 32768, 7
_SETTLE_SECONDS = 3.0
_MARK = "uploaded.txt"
_WHOLE, _LAST = 1, 4  # kinds of pieces that end a record
Identity = tuple[int, frozenset[str]]  # step and names: what tells one row of a run from another


@dataclass(frozen=True)
class Row:
    """A row of W&B's history. number: W&B's own count of the run's rows (`_step`)."""

    number: int
    identity: Identity


def is_row(record: Record) -> bool:
    """Whether W&B is given this record; texts alone stay here."""
    return bool(record.values or record.rows)


def before(history: Sequence[Record], record: Record) -> Sequence[Record]:
    """What stands before a record that is about to be given; those after it will be given in their turn."""
    key = (record.kind, record.step, record.seconds)
    for place, other in enumerate(history):
        if (other.kind, other.step, other.seconds) == key:
            return history[:place]
    return [other for other in history if other.seconds < record.seconds]


def lacking_rows(history: Sequence[Record], run_folder: Path, run_id: str, server: Server | None) -> list[Record]:
    """The records that W&B should have and has not; see `rows_there`."""
    rows = [record for record in history if is_row(record)]
    there = rows_there(run_folder, run_id, server) if rows else set()
    return [record for record in rows if identity(record) not in there]


def lacking_on_disk(history: Sequence[Record], run_folder: Path, run_id: str) -> list[Record]:
    """Without a server. A service that ends may still be writing, so it is given a moment if something is lacking."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (lacking := lacking_rows(history, run_folder, run_id, None)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return lacking


def identity(record: Record) -> Identity:
    """Of the row that a record becomes."""
    return record.step, frozenset([*record.values, *([SAMPLES_TABLE] if record.rows else [])])


@dataclass(frozen=True)
class Server:
    """What a server says of a run when a start begins.

    url          the run's page
    next_number  what it calls the next row: of what a killed start wrote, rows with lower numbers have arrived, the
                 others were lost with the service, and their numbers were given again by the start after it
    """

    url: str
    next_number: int


def await_own_folder(run_folder: Path, run_id: str) -> None:
    """Until a start gets a folder of its own: W&B names it by the second it begins in, and a start in the second of
    the one before would empty that one's log, whose rows would then be given once more."""
    while list(run_folder.glob(f"wandb/*run-{datetime.now():%Y%m%d_%H%M%S}-{run_id}")):
        time.sleep(0.05)


def mark_as_uploaded(start: Path, url: str) -> None:
    """Of a start that was seen to pass everything on."""
    (start / _MARK).write_text(url, encoding="utf-8")


def rows_there(run_folder: Path, run_id: str, server: Server | None) -> set[Identity]:
    """Rows that W&B has, or without a server those that it will have when what lies here is uploaded."""
    found: set[Identity] = set()
    limit = float("inf") if server is None else server.next_number
    folders = run_folder.glob(f"wandb/*run-*-{run_id}")
    for folder in sorted(folders, key=lambda path: path.name.removeprefix("offline-"), reverse=True):
        log = folder / f"run-{run_id}.wandb"
        rows = list(read_rows(log)) if log.is_file() else []
        offline = folder.name.startswith("offline-")
        whole = server is None or _is_uploaded(folder, server.url) or (offline and Path(f"{log}.synced").exists())
        found |= {row.identity for row in rows if whole or (row.number < limit and not offline)}
        if not offline:
            limit = min([limit, *(row.number for row in rows[:1])])
    return found


def _is_uploaded(start: Path, url: str) -> bool:
    mark = start / _MARK
    return mark.is_file() and mark.read_text(encoding="utf-8") == url


def read_rows(log: Path) -> Iterator[Row]:
    """The rows of a transaction log, up to where it is torn."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    new: Any = wandb_internal_pb2  # its classes are made at run time
    for content in _records(log.read_bytes()):
        message = new.Record()
        try:
            message.ParseFromString(content)
            if message.WhichOneof("record_type") != "history":
                continue
            items = {item.key or item.nested_key[0]: item.value_json for item in message.history.item}
            names = frozenset(name for name in items if not name.startswith("_") and name != "step")
            yield Row(message.history.step.num, (int(json.loads(items["step"])), names))
        except (DecodeError, KeyError, ValueError, TypeError, IndexError):  # torn, or not one of our rows
            continue


def _records(content: bytes) -> Iterator[bytes]:
    position, parts = _HEADER, b""
    while position + _PREFIX <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _PREFIX:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        position += _PREFIX
        if kind == 0 or position + length > len(content):
            return
        parts += content[position : position + length]
        position += length
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""
