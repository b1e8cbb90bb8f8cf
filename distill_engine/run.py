"""Composition root: the only file that sees the whole recipe and builds every part of a training run.

    deepspeed distill_engine/run.py --ds_config ds_configs/zero2.json [--recipe FILE] [--set a.b=value] [--run-dir DIR]

Exit codes: 0 done; 75 stopped by a signal and checkpointed, or a rank stood still (watchdog): start again to go on;
74 a disk, a lock or memory failed in a way that may pass; 78 bad recipe, configuration or data (starting again cannot
help); anything else failed.
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
from collections.abc import Sequence  # noqa: E402
from contextlib import suppress  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any  # noqa: E402

from distill_engine.cluster.exit_codes import (  # noqa: E402
    BAD_INPUT,
    DONE,
    FAILED,
    NOT_BEGUN,
    RETRY,
    STOPPED_AND_SAVED,
    USAGE,
    await_verdict,
    forget_verdict,
    leave_verdict,
    may_pass,
)
from distill_engine.cluster.facts import ClusterError, ClusterFacts, read_cluster  # noqa: E402
from distill_engine.cluster.lifeline import watch_launcher  # noqa: E402
from distill_engine.recipe.problem import RecipeError  # noqa: E402
from distill_engine.recipe.rules import read_recipe  # noqa: E402
from distill_engine.recipe.shipped import (  # noqa: E402
    DEFAULT_DS_CONFIG,
    DEFAULT_RECIPE,
    DEFAULT_TEACHER_DS_CONFIG,
)
from distill_engine.registry import RegistryError, load_plugins  # noqa: E402
from distill_engine.telemetry.quiet import quiet_libraries  # noqa: E402
from distill_engine.train.stop_request import STOP_SIGNALS, StopRequest  # noqa: E402

HEAD_START_SECONDS = 3.0  # of rank 0, when a start fails


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
    speaks = facts.rank == 0
    if speaks:
        forget_verdict()
    stop = StopRequest(end_early=partial(_end_before_training, speaks))
    before = _heed_signals(stop)
    watch_launcher(facts.launcher, stop.ask)
    code = _run(options, facts, stop)
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python
    if speaks:
        leave_verdict(code, unless_there=True)
    elif code not in (DONE, STOPPED_AND_SAVED):  # launchers end all ranks when one ends badly: rank 0 tells why
        await_verdict(HEAD_START_SECONDS)
    return code


def _heed_signals(stop: StopRequest) -> dict[signal.Signals, Any]:
    """Listen from the very beginning; the handlers before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop.listen()
    return before


def _end_before_training(speaks: bool) -> None:
    """A time limit, a preemption or a Ctrl-C while models are loaded: nothing is lost, and it is no crash."""
    if speaks:
        leave_verdict(STOPPED_AND_SAVED, NOT_BEGUN, unless_there=True)
        with suppress(OSError, ValueError):
            sys.stderr.write("told to stop before training began: the same command starts it again\n")
            sys.stderr.flush()
    os._exit(STOPPED_AND_SAVED)


def _run(options: TrainOptions, facts: ClusterFacts, stop: StopRequest) -> int:
    speaks = facts.rank == 0
    quiet_libraries(0 if speaks else 1)  # before anything imports torch and transformers
    try:
        load_plugins(options.plugins)
        recipe = read_recipe(options.recipe, options.overrides)  # dies in a second, before torch is even imported
    except (RecipeError, RegistryError) as error:
        if speaks:
            sys.stderr.write(f"{error}\n")
        return RETRY if may_pass(error) else BAD_INPUT
    from distill_engine.assembly.launch import train

    return train(recipe, options, facts, stop)


if __name__ == "__main__":
    sys.exit(main())
