"""The only calls to Slurm's commands. Arguments are lists, so no shell ever reads a name."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_JOB_ID = re.compile(r"\d+(?:_\d+)?")
_LIMIT_SECONDS = 60
_STATES = "JobID,State,ExitCode,Elapsed"


class SlurmError(RuntimeError):
    """A Slurm command failed or is not there; the text is its own first line."""


@dataclass(frozen=True)
class JobState:
    """What the queue or the accounting knows: state (RUNNING, PENDING, FAILED, ...), why it waits, elapsed time."""

    state: str
    reason: str = ""
    elapsed: str = ""


def own_job_id(environment: Mapping[str, str]) -> str:
    """The id under which this job can be requeued; an array element needs its own form. Empty outside Slurm."""
    array, element = environment.get("SLURM_ARRAY_JOB_ID", ""), environment.get("SLURM_ARRAY_TASK_ID", "")
    return f"{array}_{element}" if array and element else environment.get("SLURM_JOB_ID", "")


def checked_job_id(text: str) -> str:
    """A job id as Slurm writes it. Raises SlurmError for anything else, so that no option can be smuggled in."""
    if not _JOB_ID.fullmatch(text):
        raise SlurmError(f"{text!r} is no Slurm job id; they look like 1234 or 1234_5.")
    return text


def submit(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """sbatch; the new job's id."""
    said = _run(["sbatch", "--parsable", *arguments], environment)
    return checked_job_id(said.strip().splitlines()[-1].split(";")[0])


def requeue(job: str, tries: int = 4, pause_seconds: float = 5.0) -> None:
    """scontrol requeue, tried again while the controller does not answer. Raises SlurmError when it never does."""
    for left in reversed(range(tries)):
        try:
            _run(["scontrol", "requeue", checked_job_id(job)])
            return
        except SlurmError as error:
            if not left or "ontact" not in str(error):  # "Unable to contact slurm controller"
                raise
        time.sleep(pause_seconds)


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
        raise SlurmError(f"{command[0]} is not on this machine. Run this on a node of a Slurm cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer in {_LIMIT_SECONDS} s: unable to contact Slurm.") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SlurmError(f"{command[0]}: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout
