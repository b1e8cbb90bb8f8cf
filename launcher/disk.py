"""What a run keeps on the disk: the plan's arithmetic of checkpoints, exports and features, and what nodes say."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_engine.checkpoint.files import existing, free_bytes, readable_bytes
from distill_engine.checkpoint.retention import Retention
from distill_engine.checkpoint.space import Space
from distill_engine.cluster.files import folder_of_cache
from distill_engine.data.kinds.named import kind_of
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


@dataclass(frozen=True)
class KeptFeatures:
    """Features of sounds that are computed once (`cache_features`), at most: windows that no sound fills take less.

    sound   bytes of one
    sounds  how many there are at most; None where that is not known here
    """

    folder: Path
    sound: int
    sounds: int | None

    @property
    def needed(self) -> int | None:
        """Bytes of all."""
        return None if self.sounds is None else self.sounds * self.sound

    @property
    def free(self) -> int:
        """Bytes where they go, as far as this machine sees it; the folder need not exist yet."""
        return free_bytes(existing(self.folder))

    def words(self) -> str:
        """Both in a line."""
        if self.needed is None:
            return f"features in {self.folder}: up to {readable_bytes(self.sound)} a sound (--examples N: of all)"
        return (
            f"features in {self.folder}: up to {readable_bytes(self.needed)} for {self.sounds:,} sounds of "
            f"{readable_bytes(self.sound)}, {readable_bytes(self.free)} are free there"
        )


def features_of(job: Job, sounds: int | None = None) -> KeptFeatures | None:
    """What a run keeps of its sounds; None where it computes features each time or reads texts.

    sounds  their number where somebody knows it; else the lists' rows are counted
    """
    window = job.student.window
    keeping = [source for source in job.recipe.data.datasets if kind_of(source).stores_features(source)]
    if window is None or not keeping:
        return None
    if sounds is None:
        counts = [kind_of(source).rows(source, split) for source in keeping for split in ("train", "valid")]
        sounds = None if None in counts else sum(count or 0 for count in counts)
    return KeptFeatures(folder_of_cache(job.recipe.data.cache_dir, os.environ), window.kept_bytes, sounds)


def job_of_start(recipe: Path, ds_config: Path, options: Sequence[str]) -> Job:
    """The run that run.py would start with these options, on one rank; it ignores those that it does not know.

    Raises RecipeError, RegistryError or JobFileError where the run cannot be known.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--plugin", dest="plugins", action="append", default=[])
    given, _ = parser.parse_known_args(options)
    load_plugins(given.plugins)
    # neither teacher nor GPU decide anything of what is kept
    return read_job(recipe, given.overrides, 1, 1, ds_config, DEFAULT_TEACHER_DS_CONFIG, GPUS["h100"])


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


def for_features(kept: KeptFeatures) -> str:
    """One line: what features will take beside what is free, and what happens where that is less."""
    if kept.needed is None or kept.free >= kept.needed:
        return kept.words()
    return (
        f"warning: {kept.words()}. Unless they are there already, or sounds are shorter than windows, they will be "
        "computed each time. Free space, or name another data.cache_dir"
    )
