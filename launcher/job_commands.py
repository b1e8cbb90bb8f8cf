"""Commands that the job scripts call from inside a job."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from distill_engine.cluster.exit_codes import DONE, FAILED, NOT_BEGUN, STOPPED_AND_SAVED, read_verdict
from distill_engine.commands.terminal import say, tell
from distill_engine.recipe.problem import RecipeError
from distill_engine.registry import RegistryError
from launcher import disk, preflight, slurm, sweep
from launcher.app import refuse
from launcher.attempts import Start, own_start, record_end
from launcher.history import read_run
from launcher.job import Job
from launcher.job_files import JobFileError
from launcher.requeue import ENDED_FROM_OUTSIDE, NO_VERDICT, PREFLIGHT, decide

RunDirOption = Annotated[Path, typer.Option("--run-dir", help="Run folder of this job.")]

_STOPPED_BY_SIGNAL = tuple(128 + number for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM))
_EXCLUDE = re.compile(r"--exclude=([\w.,-]*\w)")


def after(
    run_dir: RunDirOption,
    code: Annotated[int, typer.Option(help="Exit code of srun.")],
    verdict: Annotated[Path | None, typer.Option(help="File in which rank 0 left its own exit code.")] = None,
    bad_nodes: Annotated[Path | None, typer.Option(help="File that a failed preflight left.")] = None,
    ending: Annotated[bool, typer.Option("--ending", help="Slurm has told the job script to end.")] = False,
) -> None:
    """The ranks have ended: requeue this job, or stop; ends with the code that tells the truth."""
    start = own_start(os.environ)
    said, reason = _verdict(code, verdict, bad_nodes)
    if ending:
        _leave_to_slurm(run_dir, start, said)
        if reason == NO_VERDICT:  # it was told, by whoever only signals
            said = STOPPED_AND_SAVED
    try:
        decision = decide(record_end(run_dir, start, said, reason, _pace(run_dir)), _log(run_dir))
    except OSError as error:
        refuse(f"requeue: the attempt cannot be recorded in {run_dir} ({error.strerror}): not starting again.")
    say(f"{decision.action}: {decision.reason}")
    sys.stdout.flush()
    if decision.action == "requeue":
        try:
            slurm.requeue(start.job, start.number, tell=say)
        except slurm.SlurmError as error:
            tell(f"requeue failed: {error} Start it again: scontrol requeue {start.job}")
            raise typer.Exit(decision.code) from error
        _avoid(start.job, bad_nodes)
    raise typer.Exit(decision.code)


def _verdict(code: int, verdict: Path | None, bad_nodes: Path | None) -> tuple[int, str]:
    """The exit code that counts and the word beside it; of no rank that left one where srun or the preflight failed."""
    said, reason = (None, "") if verdict is None else read_verdict(verdict)
    # srun ends the others with SIGTERM where one rank ended badly, so rank 0 may tell of a stop that was none
    if reason == NOT_BEGUN and code not in (DONE, STOPPED_AND_SAVED, *_STOPPED_BY_SIGNAL):
        return code, NO_VERDICT
    if said is not None:
        return said, reason
    if bad_nodes is not None and bad_nodes.is_file():
        return code or FAILED, PREFLIGHT
    # no rank got as far as a verdict: a launcher that says all is well is not believed
    return code or FAILED, NO_VERDICT


def _leave_to_slurm(run_dir: Path, start: Start, code: int) -> None:
    """End here if Slurm is ending this job for another reason; it has decided already whether it starts again."""
    now = slurm.fate(start.job, start.number)
    if now not in ("requeued", "ending"):
        return
    with contextlib.suppress(OSError):  # a line of this start is there since Slurm's signal
        record_end(run_dir, start, code, ENDED_FROM_OUTSIDE)
    what = "requeued" if now == "requeued" else "cancelled, or at its time limit"
    say(f"ended from outside: the job is {what}; the ranks ended with code {code}")
    raise typer.Exit(code)


def _pace(run_dir: Path) -> float:
    """Seconds of a step, 0 while there are none."""
    try:
        return read_run(run_dir).seconds_per_step or 0.0
    except OSError:
        return 0.0


def _log(run_dir: Path) -> str:
    """Where the ranks' output of this job is; each node has a file of its own."""
    return f"{run_dir}/logs/{os.environ.get('SLURM_JOB_NAME', '*')}-{os.environ.get('SLURM_JOB_ID', '*')}-*.log"


def _avoid(job: str, bad_nodes: Path | None) -> None:
    """Keep the job, which is pending now, off the nodes that its preflight found bad."""
    nodes = bad_nodes.read_text(encoding="utf-8").split() if bad_nodes is not None and bad_nodes.is_file() else []
    if not nodes:
        return
    try:
        slurm.exclude(job, nodes, int(os.environ.get("SLURM_JOB_NUM_NODES", "1")))
    except slurm.SlurmError as error:
        tell(f"{', '.join(nodes)} cannot be excluded: {error}")
    else:
        say(f"{', '.join(nodes)} excluded from this job's further starts (scontrol update jobid={job} ExcNodeList=)")


def preflight_node(run_dir: RunDirOption) -> None:
    """Look at this node and print what was found, as one line of JSON."""
    preflight.heed_warning(run_dir)
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    say(preflight.look(run_dir, node, os.environ).to_json())


def preflight_report(
    nodes: Annotated[int, typer.Option(help="How many nodes must answer.")],
    gpus_per_node: Annotated[int, typer.Option(help="How many GPUs each must show; 0: none needed.")] = 0,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Run folder of this job.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Its recipe: what it keeps on the disk is computed.")] = None,
    ds_config: Annotated[Path | None, typer.Option("--ds-config", help="Its DeepSpeed JSON.")] = None,
    options: Annotated[list[str], typer.Argument(metavar="[-- OPTION ...]", help="What run.py is given.")] = [],  # noqa: B006
    bad_nodes: Annotated[Path | None, typer.Option(help="File for the names of nodes to avoid, if it fails.")] = None,
) -> None:
    """Compare the nodes' lines (standard input); all problems at once, each with its node."""
    asked = preflight.asked_nodes(os.environ)
    job = None if recipe is None or ds_config is None else _job(recipe, ds_config, options)
    space = None if job is None else disk.space_of(job)
    found, problems = preflight.compare(sys.stdin, nodes, gpus_per_node, asked, space)
    free = [one.free_bytes for one in found if not one.problem]
    if space is not None and run_dir is not None and free and not problems:
        say(f"preflight: {disk.for_all(run_dir, min(free), space)}")
    if job is not None and run_dir is not None and not _begun(run_dir) and (kept := disk.features_of(job)):
        say(f"preflight: {disk.for_features(kept)}")
    for line in preflight.late(found):
        say(f"preflight: {line}")
    for problem in problems:
        tell(f"preflight: {problem}")
    if problems:
        if bad_nodes is not None:
            with contextlib.suppress(OSError):
                bad_nodes.write_text("".join(f"{node}\n" for node in _told_to_exclude(problems)), encoding="utf-8")
        raise typer.Exit(FAILED)
    say(f"preflight: {len(found)} nodes passed")


def _begun(run_dir: Path) -> bool:
    """An earlier start has read the data, and kept of it what it could."""
    return (run_dir / "recipe.yaml").is_file()


def _job(recipe: Path, ds_config: Path, options: list[str]) -> Job | None:
    try:
        return disk.job_of_start(recipe, ds_config, options)
    except (RecipeError, RegistryError, JobFileError):  # the start says what is wrong, in full
        say("preflight: what this run keeps on the disk cannot be computed here; the start will say it")
        return None


def _told_to_exclude(problems: Iterable[str]) -> list[str]:
    """What people are told to exclude is what the next start avoids."""
    lists = [found for problem in problems for found in _EXCLUDE.findall(problem)]
    return list(dict.fromkeys(node for found in lists for node in found.split(",")))


def table(folder: Annotated[Path, typer.Argument(help="Folder of a sweep.")]) -> None:
    """One row for each run of a sweep, best first; also written to table.md there."""
    try:
        say(sweep.write_table(folder))
    except OSError as error:
        refuse(f"{folder}: {error.strerror}. Give the folder that holds a sweep's runs.")
