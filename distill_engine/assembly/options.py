"""What a user says on the command line of a training run. No torch: a bad recipe dies before that is imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_engine.cluster.exit_codes import USAGE, leave_verdict
from distill_engine.recipe.shipped import DEFAULT_DS_CONFIG, DEFAULT_RECIPE, DEFAULT_TEACHER_DS_CONFIG


@dataclass(frozen=True)
class TrainOptions:
    """As `run.py` and `distill train` take them."""

    ds_config: Path = DEFAULT_DS_CONFIG
    teacher_ds_config: Path = DEFAULT_TEACHER_DS_CONFIG
    recipe: Path = DEFAULT_RECIPE
    overrides: tuple[str, ...] = ()
    run_dir: Path | None = None
    resize: bool = False
    plugins: tuple[str, ...] = ()


def parse_arguments(arguments: Sequence[str]) -> TrainOptions:
    """Command line of a rank, as the launchers call it."""
    parser = argparse.ArgumentParser(
        prog="run.py", description="Distil a teacher into a student under DeepSpeed.", allow_abbrev=False
    )
    parser.add_argument("--ds_config", "--ds-config", type=Path, default=DEFAULT_DS_CONFIG, metavar="FILE",
                        help="DeepSpeed JSON of the student: ZeRO stage, precision, communication")  # fmt: skip
    parser.add_argument("--teacher_ds_config", "--teacher-ds-config", type=Path, default=DEFAULT_TEACHER_DS_CONFIG,
                        metavar="FILE", help="DeepSpeed JSON of the teacher (ZeRO-3)")  # fmt: skip
    parser.add_argument("--recipe", type=Path, default=DEFAULT_RECIPE, metavar="FILE", help="what is learnt")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value",
                        help="change one value of the recipe; may be repeated")  # fmt: skip
    parser.add_argument("--plugin", dest="plugins", action="append", default=[], metavar="MODULE",
                        help="module or .py file that registers loss terms and the like; may be repeated")  # fmt: skip
    parser.add_argument("--run-dir", "--run_dir", type=Path, default=None, metavar="DIR",
                        help="run folder (default runs/<recipe name>); the same one again resumes")  # fmt: skip
    parser.add_argument("--resize", action="store_true",
                        help="go on although the checkpoint was written by another number of ranks")  # fmt: skip
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    try:
        given = parser.parse_args(arguments)
    except SystemExit as ended:  # a launcher would tell of the signal with which it ended the other ranks
        if ended.code == USAGE:
            leave_verdict(USAGE)
        raise
    return TrainOptions(
        given.ds_config,
        given.teacher_ds_config,
        given.recipe,
        tuple(given.overrides),
        given.run_dir,
        given.resize,
        tuple(given.plugins),
    )
