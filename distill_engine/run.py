"""The program that a launcher starts on every rank; everything behind a good recipe is assembly/launch.py.

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

import os  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from contextlib import suppress  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any  # noqa: E402

from distill_engine.assembly.options import TrainOptions, parse_arguments  # noqa: E402
from distill_engine.cluster.exit_codes import (  # noqa: E402
    BAD_INPUT,
    DONE,
    FAILED,
    NOT_BEGUN,
    RETRY,
    STOPPED_AND_SAVED,
    await_verdict,
    forget_verdict,
    leave_verdict,
    may_pass,
)
from distill_engine.cluster.facts import ClusterError, ClusterFacts, read_cluster  # noqa: E402
from distill_engine.cluster.lifeline import watch_launcher  # noqa: E402
from distill_engine.recipe.problem import RecipeError  # noqa: E402
from distill_engine.recipe.rules import read_recipe  # noqa: E402
from distill_engine.registry import RegistryError, load_plugins  # noqa: E402
from distill_engine.telemetry.quiet import quiet_libraries  # noqa: E402
from distill_engine.train.stop_request import STOP_SIGNALS, StopRequest  # noqa: E402

HEAD_START_SECONDS = 3.0  # of rank 0, when a start fails


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
