"""Composition root: the only file that sees the whole recipe and builds every part of a training run.

    deepspeed distill_engine/run.py --ds_config ds_configs/zero2.json [--recipe FILE] [--set a.b=value] [--run-dir DIR]

Exit codes: 0 done; 75 stopped by a signal and checkpointed, or a rank stood still (watchdog): start again to go on;
78 bad recipe, configuration or data (starting again cannot help); anything else failed.
"""

from __future__ import annotations

import sys
from pathlib import Path

# `deepspeed distill_engine/run.py` puts this file's own folder first on the path, where our module names would
# shadow other packages' ones. The folder above it is the one that holds the package.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
if str(_HERE.parent) not in sys.path:
    sys.path.insert(0, str(_HERE.parent))

import argparse  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402

from distill_engine.cluster.exit_codes import BAD_INPUT, DONE, FAILED, STOPPED_AND_SAVED, USAGE, leave_verdict  # noqa: E402
from distill_engine.cluster.facts import ClusterError, read_cluster  # noqa: E402
from distill_engine.cluster.lifeline import watch_launcher  # noqa: E402
from distill_engine.recipe.problem import RecipeError  # noqa: E402
from distill_engine.recipe.rules import read_recipe  # noqa: E402
from distill_engine.registry import RegistryError, load_plugins  # noqa: E402
from distill_engine.telemetry.quiet import quiet_libraries  # noqa: E402

HEAD_START_SECONDS = 3.0  # of rank 0, when a start fails
DEFAULT_RECIPE = _HERE.parent / "recipes" / "demo.yaml"
DEFAULT_DS_CONFIG = _HERE.parent / "ds_configs" / "zero2.json"
DEFAULT_TEACHER_DS_CONFIG = _HERE.parent / "ds_configs" / "teacher_zero3.json"


@dataclass(frozen=True)
class TrainOptions:
    """What a user says on the command line."""

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as one rank of a launcher's ranks, or alone; returns the exit code."""
    return run_training(parse_arguments(sys.argv[1:] if arguments is None else arguments))


def run_training(options: TrainOptions) -> int:
    """Train; returns the exit code. Errors a user can cause are printed once, without a traceback."""
    try:
        facts = read_cluster(os.environ)
    except ClusterError as error:  # said by every rank: none of them knows which one it is
        sys.stderr.write(f"LaunchError: {error}\n")
        return FAILED
    watch_launcher(facts.launcher)
    speaks = facts.rank == 0
    _heed_early_signal(speaks)
    code = _run(options, speaks)
    if speaks:
        leave_verdict(code)
    elif code != DONE:  # launchers end all ranks when the first one ends badly: rank 0 has a reason to tell
        time.sleep(HEAD_START_SECONDS)
    return code


def _heed_early_signal(speaks: bool) -> None:
    """A time limit may be announced before training, which installs its own handler, has begun: nothing is lost then,
    and the launcher should know that this was no crash."""

    def end(_number: int, _frame: object) -> None:
        if speaks:
            leave_verdict(STOPPED_AND_SAVED)
        os._exit(STOPPED_AND_SAVED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, end)


def _run(options: TrainOptions, speaks: bool) -> int:
    quiet_libraries(0 if speaks else 1)  # before anything imports torch and transformers
    try:
        load_plugins(options.plugins)
        recipe = read_recipe(options.recipe, options.overrides)  # dies in a second, before torch is even imported
    except (RecipeError, RegistryError) as error:
        if speaks:
            sys.stderr.write(f"{error}\n")
        return BAD_INPUT
    from distill_engine.assembly.launch import train

    return train(recipe, options, speaks)


if __name__ == "__main__":
    sys.exit(main())
