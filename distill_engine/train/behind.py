"""Which rank keeps the others waiting: each leaves how far it has come, and any of them compares."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill_engine.cluster.files import replace_text
from distill_engine.cluster.ranks import first_of

OWN = "own"  # the program's own collectives; every other track is a process group of torch
_NAMED = 8


def position_file(folder: Path, rank: int) -> Path:
    """Where a rank leaves how far it has come."""
    return folder / f"rank_{rank}.json"


def leave_position(folder: Path, rank: int, position: Mapping[str, Any]) -> None:
    """Write it, in one step: `node`, `doing`, and `tracks`: name -> number, name of the last collective, ended.
    Raises OSError."""
    replace_text(position_file(folder, rank), json.dumps(position))


def read_positions(folder: Path, world_size: int) -> dict[int, dict[str, Any]]:
    """Rank -> what it left; ranks that left nothing readable are absent."""
    found = {}
    for rank in range(world_size):
        try:
            found[rank] = json.loads(position_file(folder, rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return found


def name_behind(positions: Mapping[int, Mapping[str, Any]], world_size: int) -> str:
    """A sentence that names the ranks which are behind, or which say nothing, as far as it can be told."""
    silent = [rank for rank in range(world_size) if rank not in positions]
    said = ""
    if silent:
        said = f"{_ranks(silent, {})} left no word: dead, suspended, or inside a library that keeps Python's lock. "
    tracks = list(dict.fromkeys(name for position in positions.values() for name in position["tracks"]))
    tracks.sort(key=lambda name: name != OWN)
    for reached in (_begun, _ended):
        for track in tracks:
            numbers = {rank: reached(one["tracks"][track]) for rank, one in positions.items() if track in one["tracks"]}
            if numbers and min(numbers.values()) < max(numbers.values()):
                return said + _difference(track, reached, numbers, positions)
    if silent:
        return said.strip()
    return "all ranks have come equally far: none is behind, so look at what connects them, or at what all wait for"


def _begun(track: Mapping[str, Any]) -> int:
    return int(track["number"])


def _ended(track: Mapping[str, Any]) -> int:
    return int(track["ended"])


def _difference(
    track: str,
    reached: Callable[[Mapping[str, Any]], int],
    numbers: Mapping[int, int],
    positions: Mapping[int, Mapping[str, Any]],
) -> str:
    farthest = max(numbers, key=lambda rank: numbers[rank])
    behind = [rank for rank, number in numbers.items() if number < numbers[farthest]]
    first = min(behind, key=lambda rank: numbers[rank])
    what = "our collective" if track == OWN else f"collective of process group {track}, number"
    verb = "begun" if reached is _begun else "ended"
    name = positions[farthest]["tracks"][track]["name"]
    return (
        f"{_ranks(behind, positions)} is behind: it has {verb} {what} {numbers[first]}, others {numbers[farthest]} "
        f"({name}); it was {positions[first]['doing']}"
    )


def _ranks(ranks: list[int], positions: Mapping[int, Mapping[str, Any]]) -> str:
    named = [f"rank {rank}" + (f" ({positions[rank]['node']})" if rank in positions else "") for rank in ranks]
    return first_of(named, _NAMED)
