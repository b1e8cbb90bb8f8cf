"""Commands that the job scripts call from inside a job."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from distill_engine.exit_codes import FAILED, read_verdict
from launcher import preflight, slurm, sweep
from launcher.app import ERR, refuse, say
from launcher.requeue import Attempt, decide, newest_step, record_attempt

RunDirOption = Annotated[Path, typer.Option("--run-dir", help="Run folder of this job.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(after)
    app.command("preflight-node")(preflight_node)
    app.command("preflight-report")(preflight_report)
    app.command()(table)


def after(
    run_dir: RunDirOption,
    code: Annotated[int, typer.Option(help="Exit code of srun.")],
    verdict: Annotated[Path | None, typer.Option(help="File in which rank 0 left its own exit code.")] = None,
) -> None:
    """The ranks have ended: requeue this job, or stop; ends with the code that tells the truth."""
    said = None if verdict is None else read_verdict(verdict)[0]
    if said is None:  # no rank got as far as a verdict: a launcher that says all is well is not believed
        said = code or FAILED
    job = slurm.own_job_id(os.environ)
    try:
        decision = decide(record_attempt(run_dir, Attempt(job, said, newest_step(run_dir))))
    except OSError as error:
        refuse(f"requeue: the attempt cannot be recorded in {run_dir} ({error.strerror}): not starting again.")
    say(f"{decision.action}: {decision.reason}")
    sys.stdout.flush()
    if decision.action == "requeue":
        try:
            slurm.requeue(job)
        except slurm.SlurmError as error:
            ERR.print(f"requeue failed: {error} Start it again: scontrol requeue {job}", markup=False)
    raise typer.Exit(decision.code)


def preflight_node(run_dir: RunDirOption) -> None:
    """Look at this node and print what was found, as one line of JSON."""
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    say(preflight.look(run_dir, node, os.environ).to_json())


def preflight_report(
    nodes: Annotated[int, typer.Option(help="How many nodes must answer.")],
    gpus_per_node: Annotated[int, typer.Option(help="How many GPUs each must show; 0: none needed.")] = 0,
) -> None:
    """Compare the nodes' lines (standard input); all problems at once, each with its node."""
    found, problems = preflight.compare(sys.stdin, nodes, gpus_per_node, preflight.asked_nodes(os.environ))
    for problem in problems:
        ERR.print(f"preflight: {problem}", markup=False)
    if problems:
        raise typer.Exit(FAILED)
    say(f"preflight: {len(found)} nodes passed")


def table(folder: Annotated[Path, typer.Argument(help="Folder of a sweep.")]) -> None:
    """One row for each run of a sweep, best first; also written to table.md there."""
    try:
        say(sweep.write_table(folder))
    except OSError as error:
        refuse(f"{folder}: {error.strerror}. Give the folder that holds a sweep's runs.")
