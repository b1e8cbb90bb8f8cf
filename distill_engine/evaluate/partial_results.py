"""What an evaluation has measured so far, batch by batch, so that an interrupted one goes on where it was.

One folder per question (model, teacher, data, settings: a digest of all names it), one JSON-lines file per process
in it. A line holds the batch's number, its sums and, where replies were generated, the replies. Lines are complete
or absent; what a killed process left half-written is cut off when it starts again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill_engine.cluster.files import digest_of
from distill_engine.evaluate.generate import Reply


@dataclass(frozen=True)
class BatchResult:
    """One batch: [datasets, columns] sums as nested lists (exact: JSON keeps every bit of a float64), and replies."""

    number: int
    sums: list[list[float]]
    replies: list[Reply] | None = None


class PartialResults:
    """The results of one model. `folder` belongs to this question alone; several processes may share it."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        """Raises OSError if the folder cannot be made or written."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._own = folder / f"rank-{rank}.jsonl"
        self._own.touch()
        _cut_half_line(self._own)

    def read(self) -> dict[int, BatchResult]:
        """Batch number -> result, of all processes so far."""
        found: dict[int, BatchResult] = {}
        for file in sorted(self.folder.glob("rank-*.jsonl")):
            for line in file.read_bytes().splitlines():
                result = _parsed(line)
                if result is not None:
                    found.setdefault(result.number, result)
        return found

    def add(self, result: BatchResult) -> None:
        """Append one batch; in the file when the call returns."""
        with self._own.open("ab") as file:
            file.write(json.dumps(asdict(result), ensure_ascii=False).encode() + b"\n")

    def clear(self, world_size: int) -> None:
        """Forget this process's results; the first process also those of more processes than there are now."""
        self._own.write_bytes(b"")
        for file in self.folder.glob("rank-*.*"):
            number = file.stem.removeprefix("rank-")
            if self._own.stem == "rank-0" and number.isdecimal() and int(number) >= world_size:
                file.unlink()


def question_key(facts: Mapping[str, Any]) -> str:
    """20 hexadecimal digits that change with any of the JSON-ready facts."""
    return digest_of(facts)[:20]


def model_identity(folder: str, commit: str | None) -> list[Any]:
    """What tells a model's weights and settings from others without reading them.

    Names, sizes and modification times of a local folder's files; a Hub model's name and commit.
    """
    path = Path(folder)
    if not path.is_dir():
        return [folder, commit]
    kept = (".safetensors", ".bin", ".json")
    files = sorted(file for file in path.iterdir() if file.suffix in kept)
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _parsed(line: bytes) -> BatchResult | None:
    try:
        content = json.loads(line)
        replies = content["replies"]
        made = None if replies is None else [Reply(str(one["text"]), int(one["tokens"])) for one in replies]
        return BatchResult(int(content["number"]), [[float(x) for x in row] for row in content["sums"]], made)
    except (ValueError, TypeError, KeyError):
        return None


def _cut_half_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        path.write_bytes(content[:whole])
