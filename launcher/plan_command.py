"""`plan`: prints what a run would need, and how to make it fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from distill_engine.checkpoint.files import existing, free_bytes, readable_bytes
from distill_engine.commands.terminal import OUT, SetOption, say
from distill_engine.recipe.problem import RecipeError, did_you_mean
from distill_engine.recipe.shipped import DEFAULT_DS_CONFIG, DEFAULT_TEACHER_DS_CONFIG
from launcher.app import refuse
from launcher.cache_size import cache_size, in_words
from launcher.disk import KeptFeatures, features_of, space_of
from launcher.hardware import GPUS
from launcher.job import Job
from launcher.job_files import JobFileError, read_job
from launcher.plan import USABLE_MEMORY, Plan, make_plan
from launcher.remedies import remedies
from launcher.shapes import trimmed_rows

DEFAULT_CACHE_K = 64  # of `distill cache`


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1)] = 8,
    gpu: Annotated[str, typer.Option(help=f"Kind of GPU: {', '.join(GPUS)}.")] = "h100",
    ds_config: Annotated[Path, typer.Option("--ds-config")] = DEFAULT_DS_CONFIG,
    teacher_ds_config: Annotated[Path, typer.Option("--teacher-ds-config")] = DEFAULT_TEACHER_DS_CONFIG,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
    cache_k: Annotated[
        str | None, typer.Option("--cache-k", metavar="N|all", help="Size of `distill cache --k N` of this recipe.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Training and validation examples, for that size and kept features.")
    ] = None,
) -> None:
    """Memory, bytes moved and time of a step on a cluster; ends with 1 if it does not fit."""
    if cache_k is not None and cache_k != "all" and (not cache_k.isdecimal() or int(cache_k) < 1):
        refuse(f"--cache-k is {cache_k!r}. It is a number of tokens, such as 64, or all.")
    if gpu not in GPUS:
        refuse(f"--gpu is {gpu!r}. Known are {', '.join(GPUS)}. {did_you_mean(gpu, GPUS)}")
    try:
        job = read_job(recipe, overrides, nodes, gpus_per_node, ds_config, teacher_ds_config, GPUS[gpu])
    except (RecipeError, JobFileError) as error:
        refuse(error)
    _refuse_missing_kernels(job, gpu)
    made = make_plan(job, GPUS[gpu])
    _print(made, nodes, gpus_per_node, gpu)
    if kept := features_of(job, examples):
        say(kept.words())
    room = _cache(job, cache_k, examples)
    help_found = [] if made.fits else remedies(job, GPUS[gpu])
    if json_file is not None:
        json_file.write_text(json.dumps(_numbers(made, help_found, kept), indent=2) + "\n", encoding="utf-8")
    if made.fits and room:
        say("It fits.")
        return
    if made.fits:
        say(
            "The teacher cache does not fit. Keep fewer tokens (--cache-k), compare fewer layers, or give another disk."
        )
        raise typer.Exit(1)
    say("It does not fit. " + ("Any one of these makes it fit:" if help_found else "No single setting makes it fit."))
    for one in help_found:
        say(f"  - {one}")
    raise typer.Exit(1)


def _cache(job: Job, asked: str | None, examples: int | None) -> bool:
    """Say what a teacher cache takes, where one is asked for; whether it fits, as far as that can be known here: on the
    disk of teacher.cache, where nothing is yet."""
    if asked is None and not job.cached:
        return True
    k = None if asked == "all" else int(asked or DEFAULT_CACHE_K)
    size = cache_size(job, k)
    if size is None:
        return True
    say(in_words(size, job, k, examples))
    folder = job.recipe.teacher.cache
    if folder is None or examples is None or Path(folder).exists():
        return True
    data, free = job.recipe.data, free_bytes(existing(Path(folder)))
    say(f"teacher.cache is {folder}: {readable_bytes(free)} are free there")
    return size.of(examples, job.context_length, data.label_tokens) <= free


def _refuse_missing_kernels(job: Job, gpu: str) -> None:
    """A run that asks for kernels which the GPU cannot run would refuse to start."""
    for group, choice in job.recipe.losses.kernels:
        if choice == "fused" and not job.triton:
            refuse(
                f"losses.kernels.{group} is fused, but no Triton kernel runs on {gpu} (compute capability below 8.0). "
                "Set it to auto (the same memory in plain PyTorch) or reference, or choose another --gpu."
            )


def _way(job: Job) -> str:
    """How the teacher's passes lie, where that costs memory."""
    if job.held_batches == 1:
        return ""
    return ", window" if job.recipe.teacher.window else ", overlap"


def _say_vocabulary(job: Job) -> None:
    """What a trimmed vocabulary was taken for."""
    assert job.teacher is not None, "a rule of recipes"
    if trimmed_rows(job.recipe) is not None:
        say(f"vocabulary: {job.teacher.vocab:,} tokens are kept, as they were counted in the data")
    else:
        say(
            f"vocabulary: nothing here has counted the tokens of the data yet, so the teacher's {job.teacher.vocab:,} "
            "are priced: a run needs at most that. `distill check --recipe FILE` counts, and the next plan knows"
        )


def _print(made: Plan, nodes: int, per_node: int, gpu: str) -> None:
    job = made.job
    sizes = [f"{one.parameters / 1e6:,.1f} M" for one in (job.teacher, *job.others) if one is not None]
    teacher = " + ".join(sizes) or "none"
    where = " (cached)" if job.cached and job.teacher is not None else ""
    where = where if job.loaded is None else f" ({job.placement}{_way(job)})"
    models = f"teacher {teacher}{where}, trained {job.trained / 1e6:,.1f} M"
    say(f"{job.recipe.name} on {nodes} x {per_node} {gpu}: {models}")
    if job.recipe.student.vocabulary != "all":
        _say_vocabulary(job)
    table = Table("memory on each GPU", "GB", title_justify="left")
    for name, size in made.memory.items():
        table.add_row(name, f"{size / 1e9:,.2f}")
    table.add_row("together", f"{made.needed / 1e9:,.2f} of {made.gpu.memory * USABLE_MEMORY / 1e9:,.1f} usable")
    for name, size in made.before.items():
        table.add_row(f"on rank 0's before the first step: {name}", f"{size / 1e9:,.2f}")
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
    space = space_of(job)
    say(f"run folder: up to {readable_bytes(space.needed(0, 0))}: {space.words()}")


def _numbers(made: Plan, help_found: list[str], kept: KeptFeatures | None) -> dict[str, Any]:
    space = space_of(made.job)
    return {
        "fits": made.fits,
        "remedies": help_found,
        "memory_bytes": made.memory | {"together": made.needed},
        "memory_bytes_before": made.before,
        "host_memory_bytes": made.host,
        "disk_bytes": {
            "checkpoint": space.checkpoint,
            "export": space.export,
            "run folder": space.needed(0, 0),
            **({} if kept is None else {"features of a sound": kept.sound, "features": kept.needed}),
        },
        "traffic_bytes": {
            name: {"within": one.within, "between": one.between, "host": one.host} for name, one in made.traffic.items()
        },
        "seconds": made.times | {"together": made.seconds},
        "examples_per_second": made.examples_per_second,
        "tokens_per_second": made.tokens_per_second,
    }
