"""The only calls to Slurm's commands. Arguments are lists, so no shell ever reads a name."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distill_engine.cluster.hostlist import expand_hostlist

Fate = Literal["running", "requeued", "ending"]

_JOB_ID = re.compile(r"\d+(?:_\d+)?")
_LIMIT_SECONDS = 60
_REFUSALS = 3  # of a controller that answers; more would keep nodes idle
_FATE = "State:20,RestartCnt:12"
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
_ENDING = {
    "COMPLETING", "CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY",
    "BOOT_FAIL", "REVOKED",
}  # fmt: skip
_STATES = "JobID,State,ExitCode,Elapsed"


class SlurmError(RuntimeError):
    """A Slurm command failed or is not there; the text is its own first line."""


class AbsentError(SlurmError):
    """The command is not on this machine."""


@dataclass(frozen=True)
class JobState:
    """What the queue or the accounting knows: state (RUNNING, PENDING, FAILED, ...), why it waits, elapsed time."""

    state: str
    reason: str = ""
    elapsed: str = ""


def checked_job_id(text: str) -> str:
    """A job id as Slurm writes it. Raises SlurmError for anything else, so that no option can be smuggled in."""
    if not _JOB_ID.fullmatch(text):
        raise SlurmError(f"{text!r} is no Slurm job id; they look like 1234 or 1234_5.")
    return text


def submit(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """sbatch; the new job's id."""
    said = _run(["sbatch", "--parsable", *arguments], environment)
    return checked_job_id(said.strip().splitlines()[-1].split(";")[0])


def fate(job: str, restarts: int) -> Fate | None:
    """What the controller is doing with a job that was started again `restarts` times; None when it does not answer.

    A job that is told to end is COMPLETING for as long as its script runs, also when it is requeued: the count of its
    restarts, which rises at once, tells the two apart.
    """
    try:
        said = _run(["squeue", "--noheader", f"--jobs={checked_job_id(job)}", "--states=all", f"--Format={_FATE}"])
        state, count = said.split()[:2]
        started_again = int(count) > restarts
    except AbsentError:
        raise
    except (SlurmError, ValueError):
        return None
    if started_again or state in _WAITING:
        return "requeued"
    return "ending" if state in _ENDING else "running"


def requeue(
    job: str,
    restarts: int,
    *,
    patience_seconds: float = 600.0,
    pause_seconds: float = 5.0,
    tell: Callable[[str], None] = lambda _line: None,
) -> None:
    """scontrol requeue, until the job is to be started again; what it or the controller says on the way counts little.

    Raises SlurmError when a controller that answers leaves the job running, when the job is being ended, and when none
    answers for `patience_seconds`.
    """
    deadline = time.monotonic() + patience_seconds
    refusals = 0
    while True:
        said = "it said nothing"
        try:
            _run(["scontrol", "requeue", checked_job_id(job)])
        except AbsentError:
            raise
        except SlurmError as error:
            said = str(error)
        now = fate(job, restarts)
        if now == "requeued":
            return
        if now == "ending":
            raise SlurmError("the job is being ended from outside.")
        refusals += now == "running"
        left = deadline - time.monotonic()
        if refusals > _REFUSALS or left < 0:
            raise SlurmError(said)
        why = "the controller does not answer" if now is None else "the job is not requeued"
        tell(f"requeue: {why} ({said}); asked again for up to {left:.0f} s")
        time.sleep(pause_seconds)


def exclude(job: str, nodes: Sequence[str], needed: int) -> None:
    """Keep a pending job, which needs so many nodes, off some, beside those it avoids already. SlurmError: why not."""
    job = checked_job_id(job)
    asked = _run(["squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%P|%x"]).strip()
    partition, _, avoided = asked.partition("|")
    try:
        unwanted = set(nodes) | (set() if avoided in ("", "(null)") else set(expand_hostlist(avoided)))
    except ValueError as error:
        raise SlurmError(f"squeue names nodes as {avoided!r}: {error}") from error
    listed = _run(["sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N|%T"]).splitlines()
    usable = {line.split("|")[0] for line in listed if not re.search("down|drain|fail", line.split("|")[1])}
    left = len(usable - unwanted)
    if left < needed:
        raise SlurmError(f"partition {partition} would have {left} nodes left, the job needs {needed}.")
    _run(["scontrol", "update", f"jobid={job}", f"ExcNodeList={','.join(sorted(unwanted))}"])


def cancel(job: str) -> None:
    """scancel of all its steps and of the job."""
    _run(["scancel", checked_job_id(job)])


def job_state(job: str) -> JobState | None:
    """From the queue, else from the accounting where there is one; None when neither knows the job."""
    job = checked_job_id(job)
    try:
        line = _run(["squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T|%r|%M"]).strip()
        if line:
            state, reason, elapsed = line.splitlines()[0].split("|", 2)
            return JobState(state, "" if reason == "None" else reason, elapsed)
    except SlurmError as error:
        if "Invalid job id" not in str(error):
            raise
    try:
        line = _run(["sacct", "--noheader", "--parsable2", "-X", f"--jobs={job}", f"--format={_STATES}"]).strip()
    except SlurmError:  # many clusters keep no accounting
        return None
    fields = line.splitlines()[-1].split("|") if line else []
    return JobState(fields[1], f"exit code {fields[2]}", fields[3]) if len(fields) == 4 else None


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, env=environment, check=False
        )
    except FileNotFoundError as error:
        raise AbsentError(f"{command[0]} is not on this machine. Run this on a node of a Slurm cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer in {_LIMIT_SECONDS} s: unable to contact Slurm.") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SlurmError(f"{command[0]}: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout
