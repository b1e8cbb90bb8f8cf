"""A run folder as a person on a login node sees it: metrics.jsonl and the checkpoints' names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_engine.checkpoint.files import newest_step
from launcher.submission import JOB_FILE

LOCK_FILE = ".lock"  # of distill_engine.setup.run_folder, which a login node without torch cannot import
_GAP = "run/missing_records"  # as distill_engine/telemetry/sinks.py writes it
_TAIL_BYTES = 4_000_000  # the newest records; a run of weeks writes more than anybody wants to read


@dataclass(frozen=True)
class RunState:
    """Where a run is.

    step             newest step in the history, -1 before the first
    seconds          of training up to there
    best             best value of the validation metric so far, with its step; None before the first validation
    checkpoint       step of the newest complete checkpoint, -1 if there is none
    seconds_per_step over the last records, None while unknown
    missing          records that metrics.jsonl lacks, in words; empty if none
    """

    step: int
    seconds: float
    metric: str
    best: tuple[float, int] | None
    checkpoint: int
    seconds_per_step: float | None
    missing: str = ""


def read_run(folder: Path, metric: str = "ppl", direction: str = "min") -> RunState:
    """Raises OSError when the folder is not there."""
    folder.stat()
    checkpoint = newest_step(folder)  # before the records: a step is recorded before it is saved
    records = list(_records(folder / "metrics.jsonl"))
    trained = [(int(one["step"]), float(one["seconds"])) for one in records if one["kind"] == "train"]
    values = [
        (float(one["values"][f"valid/{metric}"]), int(one["step"]))
        for one in records
        if one["kind"] == "valid" and f"valid/{metric}" in one["values"]
    ]
    finite = [value for value in values if math.isfinite(value[0])]
    best = None
    if finite:
        best = min(finite, key=lambda one: (one[0] if direction == "min" else -one[0], one[1]))
    step, seconds = max(trained, default=(-1, 0.0))
    return RunState(step, seconds, metric, best, checkpoint, _pace(trained), _missing(records, step, checkpoint))


def _missing(records: list[dict[str, Any]], step: int, checkpoint: int) -> str:
    """Every checkpoint's step has its record; gaps before the end are events that say how many are missing."""
    lost = sum(int(float(one["values"].get(_GAP, 0))) for one in records)
    gaps = [f"{lost} in between"] if lost else []
    late = [f"those of steps {max(step, 0) + 1} to {checkpoint}"] if checkpoint > max(step, 0) else []
    return " and ".join(gaps + late)


def job_of(folder: Path) -> str:
    """Id of the run's newest Slurm job: what `submit` left there, or who last held the folder; empty without either.

    Whichever was written later counts: a submitted job may still wait, a later one may have come without `submit`.
    """
    submitted, lock = folder / "logs" / JOB_FILE, folder / LOCK_FILE
    found = []
    for file, read in ((submitted, str.strip), (lock, _holders_job)):
        try:
            found.append((file.stat().st_mtime, read(file.read_text(encoding="utf-8", errors="replace"))))
        except OSError:
            continue
    return max(((when, job) for when, job in found if job), default=(0.0, ""))[1]


def _holders_job(text: str) -> str:
    try:
        holder = json.loads(text)
    except ValueError:
        return ""
    return str(holder.get("job", "")) if isinstance(holder, dict) else ""


def _pace(trained: list[tuple[int, float]]) -> float | None:
    recent = trained[-50:]
    steps = recent[-1][0] - recent[0][0] if recent else 0
    return (recent[-1][1] - recent[0][1]) / steps if steps > 0 else None


def _records(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        for line in content:
            try:
                record = json.loads(line)
            except ValueError:  # cut by our own seek, or half-written
                continue
            if isinstance(record, dict) and {"kind", "step", "seconds", "values"} <= record.keys():
                yield record
