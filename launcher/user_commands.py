"""Commands for people: submit a run, look at it, end it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from distill_engine.commands.terminal import SetOption, say
from distill_engine.recipe.problem import RecipeError
from distill_engine.recipe.rules import read_recipe
from distill_engine.recipe.schema import Recipe
from distill_engine.recipe.shipped import DEFAULT_DS_CONFIG, HOME, INSTALLED, copy_templates
from launcher import slurm
from launcher.app import refuse
from launcher.container import container
from launcher.history import RunState, job_of, read_run
from launcher.submission import SCRIPT, plan_submission, remember_job

RunArgument = Annotated[Path, typer.Argument(help="Run folder.")]


def submit(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes; default: the script's.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="GPUs, and ranks, on each node.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit as sbatch reads it: 2-00:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm account.")] = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Run folder (default runs/<name>).")] = None,
    ds_config: Annotated[Path | None, typer.Option("--ds-config", help="DeepSpeed JSON of the student.")] = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    sbatch: Annotated[list[str], typer.Option("--sbatch", help="One more flag for sbatch; may be repeated.")] = [],  # noqa: B006
    resize: Annotated[
        bool, typer.Option("--resize", help="Go on although the checkpoint was written by another number of ranks.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the command and the script.")] = False,
) -> None:
    """Check a recipe and submit it to Slurm; prints the job's id."""
    checked = _read(recipe, overrides)
    folder = run_dir or Path("runs") / checked.name
    flags = {
        "nodes": nodes,
        "gpus-per-node": gpus_per_node,
        "time": time,
        "partition": partition,
        "account": account,
    }
    submission = plan_submission(
        recipe=recipe,
        name=f"distill-{checked.name}",
        run_dir=folder,
        ds_config=ds_config,
        flags=flags,
        overrides=tuple(overrides),
        plugins=context.obj or (),
        extra_flags=tuple(sbatch),
        resize=resize,
    )
    if dry_run:
        say(f"{submission.shown()}\n")
        say(_inside(submission.environment))
        say(f"# {SCRIPT}")
        say(SCRIPT.read_text(encoding="utf-8"))
        return
    try:
        job = slurm.submit(submission.arguments, submission.full_environment())
        remember_job(folder, job)
    except (slurm.SlurmError, OSError) as error:
        refuse(f"submit: {error}")
    say(f"job {job}; look at it with: python -m launcher status {shlex.quote(str(folder))}")


def _inside(environment: Mapping[str, str]) -> str:
    """What the job's srun is given with CONTAINER; empty without."""
    if "CONTAINER" not in environment:
        return ""
    folders = [HOME, Path.cwd(), Path(environment["RUN_DIR"]), Path(environment["RECIPE"]).parent]
    folders += [Path(environment.get("DS_CONFIG", DEFAULT_DS_CONFIG)).parent]
    runtime, more = environment.get("CONTAINER_RUNTIME", ""), environment.get("CONTAINER_MOUNTS", "")
    try:
        found = container(environment["CONTAINER"], folders, workdir=Path.cwd(), runtime=runtime, more=more)
    except ValueError as error:
        refuse(f"submit: {error}")
    python = environment.get("CONTAINER_PYTHON", "python3")
    return f"# its ranks: srun {shlex.join([*found.srun, *found.inside, python])} ...\n"


def templates(
    folder: Annotated[Path, typer.Argument(help="Folder that gets slurm/, recipes/ and ds_configs/.")],
) -> None:
    """Copy the job scripts, recipes and DeepSpeed configurations that come with the program, to change them."""
    try:
        made = copy_templates(folder)
    except (ValueError, OSError) as error:
        refuse(f"templates: {error}")
    for path in made:
        say(str(path))
    python = "" if not INSTALLED else f"PYTHON={shlex.quote(sys.executable)} "
    say(f"from there: cd {shlex.quote(str(folder))} && {python}sbatch slurm/distill_bb3b.sh --set data.root=FOLDER")


def status(
    run_dir: RunArgument,
    job: Annotated[str, typer.Option(help="Slurm job id; default: the one that `submit` or the run left there.")] = "",
) -> None:
    """Queue state, step, best value, last checkpoint and time left of a run."""
    recipe = run_dir / "recipe.yaml"
    checked = _read(recipe, []) if recipe.is_file() else None
    metric = ("ppl", "min") if checked is None else (checked.validation.metric, checked.validation.better)
    try:
        state = read_run(run_dir, *metric)
    except OSError as error:
        refuse(f"{run_dir}: {error.strerror}. Give a run folder, or wait until the job has started.")
    for name, value in [("job", _queue(job or job_of(run_dir))), *_progress(state, checked)]:
        say(f"{name:<16} {value}")


def cancel(
    run_dir: RunArgument,
    job: Annotated[str, typer.Option(help="Slurm job id; default: the one that `submit` or the run left there.")] = "",
) -> None:
    """End a run's job; what it has saved stays, and the same submission goes on from there."""
    known = job or job_of(run_dir)
    if not known:
        refuse(f"{run_dir} names no job. Give it: --job ID (squeue --me lists yours).")
    try:
        slurm.cancel(known)
    except slurm.SlurmError as error:
        refuse(f"cancel: {error}")
    say(f"job {known} is being ended")


def _read(recipe: Path, overrides: list[str]) -> Recipe:
    try:
        return read_recipe(recipe, overrides)
    except RecipeError as error:
        refuse(error)


def _queue(job: str) -> str:
    if not job:
        return "none is known here (--job ID)"
    try:
        state = slurm.job_state(job)
    except slurm.SlurmError as error:
        return f"{job}: {error}"
    if state is None:
        return f"{job}: Slurm no longer knows it"
    reason = f" ({state.reason})" if state.reason else ""
    return f"{job}: {state.state}{reason}, {state.elapsed}"


def _progress(state: RunState, recipe: Recipe | None) -> list[tuple[str, str]]:
    limit = None if recipe is None else recipe.stop.max_steps
    done = "-" if state.step < 0 else f"{state.step}" + (f" of {limit}" if limit else "")
    best = "-" if state.best is None else f"{state.best[0]:.5g} at step {state.best[1]}"
    pace = "-" if state.seconds_per_step is None else f"{state.seconds_per_step:.3g} s"
    rows = [
        ("step", done),
        (f"best {state.metric}", best),
        ("checkpoint", "-" if state.checkpoint < 0 else f"step {state.checkpoint}"),
        ("time per step", pace),
    ]
    if state.missing:
        rows.append(("records missing", f"{state.missing} (in metrics.jsonl: the disk was full, perhaps)"))
    if limit and state.seconds_per_step is not None:
        left = max(0, limit - state.step) * state.seconds_per_step
        rows.append(("time left", f"{left / 3600:.1f} h" if left >= 3600 else f"{left / 60:.1f} min"))
    return rows
