"""How far this rank has come in what all ranks do together: our own collectives by count, all others as torch saw them.

Under NCCL a collective is only begun here and ends on the device, so where Python stands says little about which rank
keeps the others waiting: how far each has come does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch._C import _distributed_c10d as c10d

# The names of the number of collectives that torch's flight recorder keeps, of newer and older releases.
_BUFFER_SIZES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_KEPT = "2000"


@dataclass
class CollectiveCount:
    """Our own collectives: how many were begun, and the name of the last one. Counting costs two fields."""

    number: int = 0
    name: str = "none"
    inside: bool = False  # the last one has not returned yet

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """One of them, from its beginning to its return; `inside` stays where it raises."""
        self.number, self.name, self.inside = self.number + 1, name, True
        yield
        self.inside = False


def record_flights() -> None:
    """Let torch keep the last collectives of every group, unless the user has said how many. Before the group is made.

    Releases of torch that record by themselves keep as many.
    """
    if not any(name in os.environ for name in _BUFFER_SIZES):
        os.environ[_BUFFER_SIZES[0 if hasattr(c10d, "_dump_fr_trace") else 1]] = _KEPT


def flight_record() -> bytes | None:
    """The flight recorder's last collectives, as `torchfrtrace` reads them; None where torch has none.

    May wait for a device that hangs: call it from a thread that can be left behind.
    """
    for name in ("_dump_nccl_trace", "_dump_fr_trace"):  # the second also of gloo, since torch 2.9
        dump = getattr(c10d, name, None)
        if dump is not None and groups_reached():
            return bytes(dump())
    return None


def groups_reached() -> dict[str, dict[str, Any]]:
    """Group -> number of the last collective that was begun and of the last that has ended there, and its name."""
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        dump = getattr(c10d, name, None)
        entries = json.loads(dump()).get("entries", []) if dump is not None else []
        if entries:
            return _reached(entries)
    return {}


def _reached(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for entry in entries:
        number = int(entry.get("collective_seq_id") or 0)
        if entry.get("is_p2p") or not number:
            continue
        named = entry.get("process_group") or [entry.get("pg_id", 0)]
        group = groups.setdefault(str(named[0]), {"number": 0, "ended": 0, "name": ""})
        if number >= group["number"]:
            group |= {"number": number, "name": str(entry.get("profiling_name", ""))}
        over = entry.get("retired") or entry.get("state") == "completed"
        if over or str(entry.get("profiling_name", "")).startswith("gloo"):  # which tells of some ends too late
            group["ended"] = max(group["ended"], number)
    return groups
