"""Lets a recipe run on one rank: configurations, data, run folder, sinks, the parts (builder.py), the loop.

The second half of `run.py`, in a file of its own so that a bad recipe dies before torch is imported.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from distill_engine.assembly.builder import Builder
from distill_engine.assembly.ending import Scene, ends_anyway, fail
from distill_engine.assembly.options import TrainOptions
from distill_engine.assembly.resizing import batch_split, newest_step, split_of
from distill_engine.checkpoint.agreement import RankFailures, everywhere, on_first_rank
from distill_engine.checkpoint.files import write_failure
from distill_engine.cluster.exit_codes import DONE, FAILED, HUNG, STOPPED_AND_SAVED, leave_verdict
from distill_engine.cluster.facts import ClusterFacts
from distill_engine.cluster.files import replace_text
from distill_engine.data.errors import DataError
from distill_engine.data.order.split import BatchSplit
from distill_engine.engine import distributed
from distill_engine.engine.distributed import Ranks
from distill_engine.engine.ds_changes import changes_since
from distill_engine.engine.ds_config import (
    load_ds_config,
    precision_of,
    student_config,
    teacher_config,
)
from distill_engine.recipe.identity import recipe_difference, resolved_yaml
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.placement import placement_of
from distill_engine.recipe.problem import RecipeError
from distill_engine.recipe.schema import Recipe
from distill_engine.setup.prepare import Prepared, prepare
from distill_engine.setup.run_folder import RunFolderError, RunLock, check_run_folder
from distill_engine.telemetry.background_sink import BackgroundSink
from distill_engine.telemetry.jsonl import JsonlSink, read_history
from distill_engine.telemetry.machine import machine_record
from distill_engine.telemetry.progress import ProgressSink
from distill_engine.telemetry.sinks import Sink, SinkGroup
from distill_engine.telemetry.time_limit import TimeLimit
from distill_engine.telemetry.wandb_sink import StoredRunId, WandbSink
from distill_engine.train.progress import EndReason
from distill_engine.train.stop_request import StopRequest
from distill_engine.train.watchdog import Watchdog

_LOG = logging.getLogger(__name__)


def train(recipe: Recipe, options: TrainOptions, facts: ClusterFacts, stop: StopRequest) -> int:
    """Run a recipe on this rank; returns the process's exit code. After an error only a rank that is alone returns.

    `stop` hears the signals; from the first step on it waits for the end of a step.
    """
    scene = Scene()
    with ExitStack() as held:  # also while the records of a failed run are closed
        try:
            ranks = distributed.start(_longest_wait(recipe.stop.hang_seconds))
            code = _train(recipe, options, ranks, stop, scene, held)
        except Exception as error:
            code = fail(error, scene, facts)
    with ends_anyway(code):
        distributed.stop()
    return code


def _longest_wait(hang_seconds: float | None) -> timedelta:
    """For another rank. The watchdog, which says where everybody stands, should notice a hang first."""
    return timedelta(seconds=max(1800.0, (hang_seconds or 0.0) + 300.0))


def _end_hung() -> None:
    """Its main thread may never come back, and what would be closed may wait for who never answers."""
    leave_verdict(STOPPED_AND_SAVED, HUNG, unless_there=True)
    os._exit(STOPPED_AND_SAVED)


def _train(
    recipe: Recipe, options: TrainOptions, ranks: Ranks, stop: StopRequest, scene: Scene, held: ExitStack
) -> int:
    folder = options.run_dir or Path("runs") / recipe.name
    _ds_configs(recipe, options, ranks, split_of(recipe, ranks.world_size))  # bad ones are refused before all else
    scene.doing = lambda: "reading teacher configuration, tokenizer and data"
    ready = _prepare_everywhere(recipe, options.recipe, ranks)
    scene.doing = lambda: "looking at the run folder"
    check_run_folder(folder, ranks)
    held.enter_context(RunLock(folder, ranks))
    split, split_notes = batch_split(recipe, folder / "checkpoints", ranks, resize=options.resize)
    student_ds, teacher_ds, notes = _ds_configs(recipe, options, ranks, split)
    configs = {"ds_config": student_ds}
    placement, why = placement_of(recipe, ranks.world_size, load_ds_config(options.teacher_ds_config))
    notes += [why] if why and recipe.teacher.path and recipe.teacher.cache is None else []
    if placement != "replica":  # a copy has no engine that could be configured
        configs["teacher_ds_config"] = teacher_ds
    notes += split_notes + _claim_run_folder(folder, recipe, configs, ranks)
    sinks = _sinks(folder, recipe, student_ds, ranks)
    scene.close = lambda: sinks.close("failed")
    for note in [*notes, *([] if ready.vocabulary is None else [str(ready.vocabulary)])]:
        sinks.message(note)
    sinks.phase("building")
    hang = recipe.stop.hang_seconds
    with Watchdog(hang, folder / "hang", ranks.rank, ranks.world_size, _end_hung, ranks) as watchdog:
        scene.doing = lambda: watchdog.doing
        watchdog.loading = True
        builder = Builder(ready, folder, ranks, sinks, split, options.resize, watchdog.beat, stop)
        trainer = builder.trainer(student_ds, teacher_ds)
        held.callback(builder.publisher.abandon)
        held.callback(trainer.checkpoints.abandon)  # of a rank that is alone; any other is gone with its threads
        stop.begin()
        watchdog.loading = False
        reason = trainer.run()
    scene.doing = lambda: "closing the run's records"
    best = trainer.policies.keep_best.best
    ending, exported = ranks.broadcast(builder.publisher.ending(recipe.validation.metric, best))
    sinks.message(f"ended at step {trainer.progress.steps} ({reason.value}){ending}")
    stopped = reason is EndReason.STOP_REQUESTED
    sinks.close("stopped" if stopped else "finished" if exported else "failed")
    code = STOPPED_AND_SAVED if stopped else DONE if exported else FAILED
    if ranks.rank == 0:
        leave_verdict(code)
    ranks.barrier()  # launchers end the other ranks when one exits with a code: rank 0 may still be uploading
    return code


def _prepare_everywhere(recipe: Recipe, source: Path, ranks: Ranks) -> Prepared:
    """`prepare` on every rank; the first of each node goes ahead (a download, say), the others find its cache.

    A problem that only one node has is raised on all ranks, so that the rank that speaks can tell of it.
    """
    box: list[Prepared] = []
    defects: list[Exception] = []

    def action() -> None:
        try:
            box.append(prepare(recipe, source))
        except (ValueError, OSError):
            raise
        except Exception as error:
            defects.append(error)
            raise

    def turn(name: str, mine: bool) -> None:
        with ranks.unhurried(name):
            if mine:
                action()

    try:
        everywhere(ranks, lambda: turn("first of each node", ranks.local_rank == 0), str)
        everywhere(ranks, lambda: turn("others of each node", ranks.local_rank != 0), str)
    except RankFailures as failures:
        if any(ranks.gather(bool(defects))):  # not the user's doing: a traceback, please
            raise (defects[0] if defects else RuntimeError(str(failures))) from failures
        if 0 in failures.reasons:
            raise DataError(failures.reasons[0]) from failures
        raise DataError(str(failures)) from failures
    return box[0]


def _ds_configs(
    recipe: Recipe, options: TrainOptions, ranks: Ranks, split: BatchSplit
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    student, notes = student_config(
        load_ds_config(options.ds_config),
        batch_per_rank=split.per_rank,
        accumulation_steps=split.accumulation_steps,
        world_size=ranks.world_size,
        clip_norm=recipe.optimizer.clip_norm,
        fp16_supported=ranks.supports(torch.float16),
        bf16_supported=ranks.supports(torch.bfloat16),
        optimizer=recipe.optimizer.model_dump(),
    )
    base = load_ds_config(options.teacher_ds_config)
    teacher = teacher_config(
        base,
        dtype=precision_of(student),
        batch_per_rank=split.per_rank,
        world_size=ranks.world_size,
        placement=placement_of(recipe, ranks.world_size, base)[0],
    )
    return student, teacher, notes


def _claim_run_folder(folder: Path, recipe: Recipe, configs: dict[str, Any], ranks: Ranks) -> list[str]:
    """Write recipe.yaml and the DeepSpeed configurations; refuse a folder that belongs to another recipe.

    Collective. Returns a line for each harmless change since the last start. Raises RunFolderError on all ranks,
    with each other difference, or if the files cannot be written.
    """

    def explain(error: Exception) -> str:
        if isinstance(error, (RunFolderError, RecipeError)):
            return str(error)
        return f"The run folder {folder} cannot be used: {write_failure(error, folder)}"

    try:
        return on_first_rank(ranks, lambda: _write_run_files(folder, recipe, configs), explain)
    except RankFailures as failures:
        raise RunFolderError(failures.reasons[0]) from failures


def _write_run_files(folder: Path, recipe: Recipe, configs: dict[str, Any]) -> list[str]:
    file = folder / "recipe.yaml"
    changed: list[str] = []
    if file.is_file():
        difference = recipe_difference(load_recipe(file), recipe)
        if difference.mathematics:
            changes = "\n".join(f"  {change}" for change in difference.mathematics)
            raise RunFolderError(
                f"{folder} holds a run of another recipe (its recipe.yaml -> now):\n{changes}\n"
                "Choose another folder (--run-dir), set these values back to continue that run, or remove it."
            )
        changed = [f"changed since the last start: {change}" for change in difference.allowed]
    replace_text(file, resolved_yaml(recipe))  # half a recipe would allow no restart
    if "teacher_ds_config" not in configs:  # one of an earlier start, with another placement
        (folder / "teacher_ds_config.json").unlink(missing_ok=True)
    resumes = newest_step(folder / "checkpoints") is not None
    for name, config in configs.items():
        lines = changes_since(folder / f"{name}.json", config, resumes=resumes)
        changed += [f"changed since the last start: {line}" for line in lines]
        replace_text(folder / f"{name}.json", json.dumps(config, indent=2) + "\n")
    return changed


def _sinks(folder: Path, recipe: Recipe, student_ds: dict[str, Any], ranks: Ranks) -> SinkGroup:
    if ranks.rank != 0:
        return SinkGroup([], _LOG.warning)
    display = ProgressSink(recipe.name, total_steps=recipe.stop.max_steps, metric=recipe.validation.metric)
    display.phase("starting")
    wandb = recipe.logging.wandb
    StoredRunId(folder).restore(wandb.mode)
    config = {
        "recipe": recipe.model_dump(mode="json"),
        "ds_config": student_ds,
        "world_size": ranks.world_size,
        "machine": machine_record(),
    }
    file = folder / "metrics.jsonl"

    def dashboard() -> Sink:
        say = display.message
        return WandbSink(folder, recipe.name, wandb, config, say, history=lambda: read_history(file))

    return SinkGroup(
        [
            JsonlSink(file),
            display,
            BackgroundSink(dashboard, display.message),
            TimeLimit(folder, os.environ, display.message),
        ],
        warn=display.message,
    )
