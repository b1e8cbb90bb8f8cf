"""What a run keeps in its folder: the plan's arithmetic of its checkpoints and exports, and what a node says of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill_engine.checkpoint.files import readable_bytes
from distill_engine.checkpoint.retention import Retention
from distill_engine.checkpoint.space import Space
from distill_engine.recipe.shipped import DEFAULT_TEACHER_DS_CONFIG
from distill_engine.registry import load_plugins
from launcher.hardware import GPUS
from launcher.job import FULL, Job
from launcher.job_files import read_job
from launcher.memory_model import moments


def space_of(job: Job) -> Space:
    """Sizes of the files that a run writes, a few KiB of each left out; a test keeps them equal to what it writes.

    A checkpoint has the weights as they are, with the bias of the output layer, and of each that is trained 32-bit
    copy and moments; an export the weights of the student alone.
    """
    part, validation = job.recipe.checkpoint, job.recipe.validation
    checkpoint = (job.weights + job.student.vocab) * job.word + job.trained * (1 + moments(job)) * FULL
    keep = Retention(part.keep_last, part.keep_best, part.keep_every, validation.better)
    return Space(checkpoint, job.student.parameters * job.word, keep, job.recipe.stop.max_steps)


def space_of_start(recipe: Path, ds_config: Path, options: Sequence[str]) -> Space:
    """`space_of` the run that run.py would start with these options; it ignores those that it does not know.

    Raises RecipeError, RegistryError or JobFileError where the run cannot be known.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--plugin", dest="plugins", action="append", default=[])
    given, _ = parser.parse_known_args(options)
    load_plugins(given.plugins)
    job = read_job(recipe, given.overrides, 1, 1, ds_config, DEFAULT_TEACHER_DS_CONFIG, GPUS["h100"])
    return space_of(job)  # neither teacher nor GPU decide anything here


def too_little(node: str, free: int, space: Space) -> str:
    """What is wrong with a node that has less than `space.least` free, as at a start."""
    return (
        f"{node} sees {readable_bytes(free)} free for the run folder, and {space.words()}. Not even one of each fits. "
        "Free space, or choose another RUN_DIR; PREFLIGHT=0 starts all the same."
    )


def for_all(run_dir: Path, free: int, space: Space) -> str:
    """One line: what the run folder will need beside what it holds, and that it is not there, if it is not."""
    needed = space.needed_in(run_dir)
    line = f"{run_dir} needs {readable_bytes(needed)}, {readable_bytes(free)} are free: {space.words()}"
    return line if free >= needed else f"warning: {line}. Saves will fail when it is used up"
