"""After a job's ranks have ended: start the job again, or stop, and say why. Pure decisions; the facts are on disk."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from distill_engine.cluster.exit_codes import BAD_INPUT, DONE, STOPPED_AND_SAVED

MAX_CRASHES = 3  # in a row, without a newer checkpoint between them
HISTORY = "attempts.jsonl"
_CHECKPOINT = re.compile(r"step-(\d{8,})(?:\.\d+)?")
_SIGNAL_BASE = 128
_USAGE = 2  # of Python and its argument parser: the command line is wrong


@dataclass(frozen=True)
class Attempt:
    """How one start of a run ended.

    job   Slurm's job id; a requeued job keeps it
    code  exit code of the ranks
    step  step of the newest complete checkpoint afterwards, -1 if there is none
    """

    job: str
    code: int
    step: int


@dataclass(frozen=True)
class Decision:
    """What happens next, and the code that the batch script ends with."""

    action: Literal["done", "requeue", "stop"]
    code: int
    reason: str


def decide(attempts: list[Attempt]) -> Decision:
    """Look at the last attempt, and at the ones before it for progress. `attempts` is not empty, oldest first."""
    last = attempts[-1]
    if last.code == DONE:
        return Decision("done", DONE, "the run has finished")
    # a job's later starts have the command line of its first: Python then found its file no more, which may pass
    if last.code == BAD_INPUT or (last.code == _USAGE and len(attempts) == 1):
        what = "the command line" if last.code == _USAGE else "recipe, configuration or data"
        reason = f"{what} cannot be used: starting again cannot help. Read the message above"
        return Decision("stop", last.code, reason)
    if last.code == STOPPED_AND_SAVED:
        if _repeats(attempts, STOPPED_AND_SAVED) > MAX_CRASHES:
            reason = (
                f"it was stopped {MAX_CRASHES + 1} times in a row without a step between: the time limit is shorter "
                "than one start. Ask for more time (sbatch --time), or a later signal (sbatch --signal); or, if "
                "RUN_DIR/hang has new files, a rank that stands still: see them"
            )
            return Decision("stop", STOPPED_AND_SAVED, reason)
        return Decision("requeue", STOPPED_AND_SAVED, f"stopped and saved at step {max(0, last.step)}")
    crashes = _crashes_without_progress(attempts)
    if crashes >= MAX_CRASHES:
        where = f"step {last.step}" if last.step >= 0 else "its start"
        reason = f"it ended {crashes} times in a row ({describe(last.code)}) without getting beyond {where}"
        return Decision("stop", last.code, reason)
    count = f"try {crashes + 1} of {MAX_CRASHES} without progress"
    return Decision("requeue", last.code, f"the ranks ended with {describe(last.code)}; now {count}")


def describe(code: int) -> str:
    """An exit code in words: `exit code 1`, `signal 9`."""
    return f"signal {code - _SIGNAL_BASE}" if code > _SIGNAL_BASE else f"exit code {code}"


def newest_step(run_dir: Path) -> int:
    """Step of the newest complete checkpoint; -1 if there is none."""
    folder = run_dir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = [int(found[1]) for name in names if (found := _CHECKPOINT.fullmatch(name))]
    return max(steps, default=-1)


def read_attempts(run_dir: Path) -> list[Attempt]:
    """The attempts so far, oldest first; lines that cannot be read are passed over."""
    file = run_dir / "logs" / HISTORY
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    attempts = []
    for line in lines:
        try:
            content = json.loads(line)
            attempts.append(Attempt(str(content["job"]), int(content["code"]), int(content["step"])))
        except (ValueError, KeyError, TypeError):
            continue
    return attempts


def record_attempt(run_dir: Path, attempt: Attempt) -> list[Attempt]:
    """Append an attempt; all attempts of the same job, this one last. Raises OSError when it cannot be written."""
    file = run_dir / "logs" / HISTORY
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(attempt)) + "\n")
    # what an earlier submission suffered says nothing about this one
    return [one for one in read_attempts(run_dir) if one.job == attempt.job]


def _crashes_without_progress(attempts: list[Attempt]) -> int:
    count = 0
    for attempt in reversed(attempts):
        if attempt.code in (DONE, STOPPED_AND_SAVED) or attempt.step != attempts[-1].step:
            break
        count += 1
    return count


def _repeats(attempts: list[Attempt], code: int) -> int:
    count = 0
    for attempt in reversed(attempts):
        if attempt.code != code or attempt.step != attempts[-1].step:
            break
        count += 1
    return count
