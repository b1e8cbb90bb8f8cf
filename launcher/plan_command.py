"""`plan`: prints what a run would need, and how to make it fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.problem import RecipeError, did_you_mean
from distill_engine.recipe.rules import read_recipe
from distill_engine.recipe.schema import Recipe
from distill_engine.recipe.shipped import DEFAULT_DS_CONFIG, DEFAULT_TEACHER_DS_CONFIG
from distill_engine.registry import RegistryError, load_plugins
from launcher.app import OUT, refuse, say
from launcher.hardware import GPUS, Gpu
from launcher.job import Job
from launcher.plan import USABLE_MEMORY, Plan, make_plan
from launcher.remedies import remedies
from launcher.shapes import student_shape, teacher_shape


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(plan)


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1)] = 8,
    gpu: Annotated[str, typer.Option(help=f"Kind of GPU: {', '.join(GPUS)}.")] = "h100",
    ds_config: Annotated[Path, typer.Option("--ds-config")] = DEFAULT_DS_CONFIG,
    teacher_ds_config: Annotated[Path, typer.Option("--teacher-ds-config")] = DEFAULT_TEACHER_DS_CONFIG,
    overrides: Annotated[list[str], typer.Option("--set", metavar="a.b=value")] = [],  # noqa: B006  typer copies it
    plugins: Annotated[list[str], typer.Option("--plugin", metavar="MODULE")] = [],  # noqa: B006
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
) -> None:
    """Memory, bytes moved and time of a step on a cluster; ends with 1 if it does not fit."""
    if gpu not in GPUS:
        refuse(f"--gpu is {gpu!r}. Known are {', '.join(GPUS)}. {did_you_mean(gpu, GPUS)}")
    try:
        load_plugins(plugins)
    except RegistryError as error:
        refuse(error)
    job = read_job(recipe, overrides, nodes, gpus_per_node, ds_config, teacher_ds_config, GPUS[gpu])
    _refuse_missing_kernels(job, gpu)
    made = make_plan(job, GPUS[gpu])
    _print(made, nodes, gpus_per_node, gpu)
    help_found = [] if made.fits else remedies(job, GPUS[gpu])
    if json_file is not None:
        json_file.write_text(json.dumps(_numbers(made, help_found), indent=2) + "\n", encoding="utf-8")
    if made.fits:
        say("It fits.")
        return
    say("It does not fit. " + ("Any one of these makes it fit:" if help_found else "No single setting makes it fit."))
    for one in help_found:
        say(f"  - {one}")
    raise typer.Exit(1)


def read_job(
    recipe: Path, overrides: list[str], nodes: int, per_node: int, student_ds: Path, teacher_ds: Path, gpu: Gpu
) -> Job:
    """What the files say; ends the command with a message where they cannot be used."""
    try:
        checked = _recipe_without_its_data(recipe, overrides)
        teacher = teacher_shape(checked)
        student = student_shape(checked, teacher)
    except RecipeError as error:
        refuse(error)
    batch, data = checked.batch, checked.data
    longest = data.context_tokens + data.label_tokens
    rows = batch.per_rank if batch.max_tokens is None else max(1, batch.max_tokens // longest)
    return Job(
        recipe=checked,
        student=student,
        teacher=teacher,
        student_ds=_read(student_ds),
        teacher_ds=_read(teacher_ds),
        ranks=nodes * per_node,
        ranks_per_node=per_node,
        micro_batch=rows,
        accumulation=batch.accumulation_steps,
        triton=gpu.triton,
    )


def _refuse_missing_kernels(job: Job, gpu: str) -> None:
    """A run that asks for kernels which the GPU cannot run would refuse to start."""
    for group, choice in job.recipe.losses.kernels:
        if choice == "fused" and not job.triton:
            refuse(
                f"losses.kernels.{group} is fused, but no Triton kernel runs on {gpu} (compute capability below 8.0). "
                "Set it to auto (the same memory in plain PyTorch) or reference, or choose another --gpu."
            )


def _recipe_without_its_data(path: Path, overrides: list[str]) -> Recipe:
    """A plan may be made before any data are there; every other problem counts."""
    try:
        return read_recipe(path, overrides)
    except RecipeError as error:
        if any(not problem.path.startswith("data.") for problem in error.problems):
            raise
        return load_recipe(path, overrides)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse(f"{path}: {error}. It should be a DeepSpeed JSON; see ds_configs/.")
    if not isinstance(content, dict):
        refuse(f"{path}: it holds no JSON object. It should be a DeepSpeed JSON; see ds_configs/.")
    return content


def _print(made: Plan, nodes: int, per_node: int, gpu: str) -> None:
    job = made.job
    teacher = "none" if job.teacher is None else f"{job.teacher.parameters / 1e6:,.1f} M"
    where = "" if job.teacher is None else f" ({job.placement}{', window' if job.held_batches > 1 else ''})"
    models = f"teacher {teacher}{where}, trained {job.trained / 1e6:,.1f} M"
    say(f"{job.recipe.name} on {nodes} x {per_node} {gpu}: {models}")
    table = Table("memory on each GPU", "GB", title_justify="left")
    for name, size in made.memory.items():
        table.add_row(name, f"{size / 1e9:,.2f}")
    table.add_row("together", f"{made.needed / 1e9:,.2f} of {made.gpu.memory * USABLE_MEMORY / 1e9:,.1f} usable")
    for name, size in made.host.items():
        table.add_row(f"on each node's host: {name}", f"{size / 1e9:,.2f}")
    moved = Table("moved per step", "GB into a GPU", "GB between nodes, into a node", "GB from and to the host")
    for name, one in made.traffic.items():
        moved.add_row(name, *(f"{size / 1e9:,.2f}" for size in (one.within, one.between, one.host)))
    times = Table("time of a step (estimate)", "ms", "share")
    for name, seconds in made.times.items():
        times.add_row(name, f"{seconds * 1e3:,.2f}", f"{seconds / made.seconds:.0%}")
    times.add_row("together", f"{made.seconds * 1e3:,.2f}", f"{made.examples_per_second:,.0f} examples/s")
    for one_table in (table, moved, times):
        OUT.print(one_table)


def _numbers(made: Plan, help_found: list[str]) -> dict[str, Any]:
    return {
        "fits": made.fits,
        "remedies": help_found,
        "memory_bytes": made.memory | {"together": made.needed},
        "host_memory_bytes": made.host,
        "traffic_bytes": {
            name: {"within": one.within, "between": one.between, "host": one.host} for name, one in made.traffic.items()
        },
        "seconds": made.times | {"together": made.seconds},
        "examples_per_second": made.examples_per_second,
        "tokens_per_second": made.tokens_per_second,
    }
