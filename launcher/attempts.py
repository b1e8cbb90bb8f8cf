"""The starts of a run, on disk: RUN_DIR/logs/attempts.jsonl has a line for each start and one for each end.

    {"job": "7", "start": 0, "at": "2026-11-29T22:47:35+00:00", "nodes": "gpu[01-04]"}
    {"job": "7", "start": 0, "at": "...", "code": 75, "step": 1200, "reason": ""}

`python -m launcher.attempts begin|ending RUN_DIR` writes what the job script knows while it runs; it imports next to
nothing, because ranks wait for the one and Slurm's kill comes soon after the other.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from distill_engine.checkpoint.files import newest_step
from distill_engine.cluster.exit_codes import FAILED
from launcher.requeue import ENDED_FROM_OUTSIDE, LOST, Attempt, decide

HISTORY = "attempts.jsonl"


@dataclass(frozen=True)
class Start:
    """Which start of which job this is: `job` as it is requeued, `number` 0 for the first one."""

    job: str
    number: int


def own_start(environment: Mapping[str, str]) -> Start:
    """Of the job this process runs in; an array element is requeued by its own form. Empty outside Slurm."""
    array, element = environment.get("SLURM_ARRAY_JOB_ID", ""), environment.get("SLURM_ARRAY_TASK_ID", "")
    job = f"{array}_{element}" if array and element else environment.get("SLURM_JOB_ID", "")
    return Start(job, int(environment.get("SLURM_RESTART_COUNT") or 0))


def read_attempts(run_dir: Path) -> list[Attempt]:
    """The starts that have ended, oldest first; of two ends of one start the later. Broken lines are left out."""
    found: dict[tuple[str, object], Attempt] = {}
    for number, line in enumerate(_lines(run_dir)):
        if "code" not in line:
            continue
        try:
            code = None if line["code"] is None else int(line["code"])
            measured = float(line.get("seconds", 0.0)), float(line.get("pace", 0.0))
            attempt = Attempt(str(line["job"]), code, int(line["step"]), str(line.get("reason", "")), *measured)
            found[attempt.job, line.get("start", f"line {number}")] = attempt
        except (ValueError, KeyError, TypeError):
            continue
    return list(found.values())


def record_start(run_dir: Path, start: Start, nodes: str) -> list[Attempt]:
    """Write down that a start has begun; the job's earlier ones. Those whose end nobody wrote down are given one.

    Raises OSError when it cannot be written.
    """
    mine = [line for line in _lines(run_dir) if line.get("job") == start.job and isinstance(line.get("start"), int)]
    ended = {line["start"] for line in mine if "code" in line}
    for number in sorted({line["start"] for line in mine} - ended):
        if number < start.number:
            _append(run_dir, Start(start.job, number), code=None, step=newest_step(run_dir), reason=LOST)
    _append(run_dir, start, nodes=nodes)
    return _of_job(run_dir, start.job)


def record_end(run_dir: Path, start: Start, code: int | None, reason: str = "", pace: float = 0.0) -> list[Attempt]:
    """Write down how a start ended; all ends of the same job, this one last. Raises OSError when that fails.

    pace  seconds of a step, 0 where unknown
    """
    measured = {"seconds": _lasted(run_dir, start), "pace": pace}
    _append(run_dir, start, code=code, step=newest_step(run_dir), reason=reason, **measured)
    return _of_job(run_dir, start.job)


def _lasted(run_dir: Path, start: Start) -> float:
    """Seconds since a start's beginning was written down, 0 where it was not."""
    for line in _lines(run_dir):
        if (line.get("job"), line.get("start")) == (start.job, start.number) and "code" not in line:
            with suppress(KeyError, TypeError, ValueError):
                return max(0.0, (datetime.now(timezone.utc) - datetime.fromisoformat(line["at"])).total_seconds())
    return 0.0


def _of_job(run_dir: Path, job: str) -> list[Attempt]:
    # what an earlier submission suffered says nothing about this one
    return [one for one in read_attempts(run_dir) if one.job == job]


def _lines(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "logs" / HISTORY
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


def _append(run_dir: Path, start: Start, **facts: Any) -> None:
    file = run_dir / "logs" / HISTORY
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.parent.mkdir(exist_ok=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = {"job": start.job, "start": start.number, "at": now, **facts}
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


def begin(run_dir: Path, environment: Mapping[str, str]) -> int:
    """This start begins: 0, or the code with which it should end at once because too many brought nothing."""
    start = own_start(environment)
    try:
        earlier = record_start(run_dir, start, environment.get("SLURM_JOB_NODELIST", ""))
    except OSError as error:  # a disk that is full may be free again when there is something to save
        sys.stderr.write(f"this start cannot be recorded in {run_dir} ({error.strerror})\n")
        return 0
    # the others were judged when they ended; who dies with its node, or is killed, is started again by Slurm unasked
    if earlier and earlier[-1].reason == LOST and (decision := decide(earlier)).action == "stop":
        sys.stderr.write(f"stop: {decision.reason}\n")
        record_end(run_dir, start, FAILED, "not begun")
        return FAILED
    return 0


def ending(run_dir: Path, environment: Mapping[str, str]) -> int:
    """Slurm ends this start: written down at once, the ranks may need longer than Slurm waits."""
    record_end(run_dir, own_start(environment), None, ENDED_FROM_OUTSIDE)
    return 0


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """`begin RUN_DIR` or `ending RUN_DIR`; the exit code."""
    what, run_dir = arguments
    return {"begin": begin, "ending": ending}[what](Path(run_dir), environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
