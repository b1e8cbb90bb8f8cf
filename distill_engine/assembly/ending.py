"""How a rank ends after an error: it says so, leaves the verdict, closes what it can in a while, and is gone.

The process group is left as it is. Under NCCL its end waits for kernels, and those wait for the ranks that failed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from distill_engine.assembly.resizing import ResizeError
from distill_engine.checkpoint.agreement import RankFailures
from distill_engine.checkpoint.manifest import CheckpointError, RefusedCheckpoint
from distill_engine.cluster.exit_codes import BAD_INPUT, FAILED, RETRY, await_verdict, leave_verdict, may_pass
from distill_engine.cluster.facts import ClusterFacts
from distill_engine.data.errors import DataError
from distill_engine.engine.distributed import BadRanksError, LaunchError, RanksApartError
from distill_engine.engine.ds_config import DsConfigError
from distill_engine.engine.group_check import own_node
from distill_engine.engine.student import StudentEngineError
from distill_engine.engine.teacher_weights import TeacherError, TeacherFilesError
from distill_engine.evaluate.measured_replies import MeasuredRepliesError
from distill_engine.evaluate.teacher_replies import TeacherRepliesError
from distill_engine.losses.kernels.dispatch import KernelError
from distill_engine.models.weight_files import WeightsError
from distill_engine.recipe.problem import RecipeError
from distill_engine.setup.run_folder import RunFolderError
from distill_engine.teachers.columns import CacheError
from distill_engine.train.decisions import TrainingError
from distill_engine.train.stop_request import STOP_SIGNALS

HEAD_START_SECONDS = 3.0  # of rank 0, when all ranks know the same: launchers end all when one has ended badly
CLOSING_SECONDS = 75.0  # W&B's last upload may take 60
LEAVING_SECONDS = 60.0  # the process group of a run that has ended well

_INPUT_ERRORS = (
    RecipeError,
    DsConfigError,
    DataError,
    WeightsError,
    TeacherFilesError,
    RunFolderError,
    ResizeError,
    KernelError,
    RefusedCheckpoint,
    CacheError,
)
# Errors that say what to do. These are raised on all ranks, or come from an agreement of all.
_AGREED_ERRORS = (
    CheckpointError, TrainingError, TeacherFilesError, RunFolderError, ResizeError, MeasuredRepliesError,
)  # fmt: skip
_LONELY_ERRORS = (LaunchError, RanksApartError, TeacherError, StudentEngineError, TeacherRepliesError)
_WITH_REMEDY = (*_INPUT_ERRORS, *_AGREED_ERRORS, *_LONELY_ERRORS)


@dataclass
class Scene:
    """What a rank was doing when an error came, and how to close what it holds."""

    doing: Callable[[], str] = lambda: "starting"
    close: Callable[[], None] = lambda: None


def exit_code_of(error: Exception) -> int:
    """78 for input that is proven wrong, 74 for what may pass, 1 for anything else."""
    if may_pass(error):
        return RETRY
    return BAD_INPUT if isinstance(error, _INPUT_ERRORS) else FAILED


def fail(error: Exception, scene: Scene, facts: ClusterFacts) -> int:
    """End this rank after an error. Does not return, but for a rank that is alone: then it is the exit code."""
    with _signals_are(signal.SIG_IGN):  # launchers end every rank when one has ended: words and records come first
        return _fail(error, scene, facts)


def _fail(error: Exception, scene: Scene, facts: ClusterFacts) -> int:
    code = exit_code_of(error)
    who = f"rank {facts.rank} of {facts.world_size} on {own_node()}"
    agreed = isinstance(error, _AGREED_ERRORS) or _from_agreement(error)
    if facts.rank != 0 and not agreed and isinstance(error, _INPUT_ERRORS):
        with _signals_are(signal.SIG_DFL):  # rank 0 has probably met the same, and then this rank is ended meanwhile
            await_verdict(HEAD_START_SECONDS)
    if facts.rank == 0 or not agreed:
        _say(_words(error, code, who, scene.doing(), facts))
    leave_verdict(code, f"{who}: {type(error).__name__} while it was {scene.doing()}", unless_there=True)
    if isinstance(error, BadRanksError):
        os._exit(code)  # nothing is open yet, and the group's own threads may be in the way of everything else
    _within(CLOSING_SECONDS, scene.close)
    if facts.world_size == 1:
        return code
    if agreed and facts.rank != 0:
        with _signals_are(signal.SIG_DFL):
            time.sleep(HEAD_START_SECONDS)  # rank 0's words are said, but its records are being closed
    _flush()
    os._exit(code)


@contextmanager
def ends_anyway(code: int) -> Iterator[None]:
    """End the process with this code if what happens inside, the end of the process group, does not end by itself."""

    def end() -> None:
        _flush()
        os._exit(code)

    timer = threading.Timer(LEAVING_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _from_agreement(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, RankFailures):
            return True
        error = error.__cause__
    return False


def _words(error: Exception, code: int, who: str, doing: str, facts: ClusterFacts) -> str:
    """One message for an error with a remedy, the traceback of any other; with rank, node and phase."""
    if not isinstance(error, _WITH_REMEDY):
        moment = datetime.now().astimezone().isoformat(timespec="milliseconds")
        trace = "".join(traceback.format_exception(error))
        return f"[{who}, process {os.getpid()}] {moment}: failed while it was {doing} (exit code {code})\n{trace}"
    place = "" if facts.rank == 0 else f"[{who}, while it was {doing}] "
    again = " This may pass: start the same command again." if code == RETRY else ""
    return f"{place}{type(error).__name__}: {error}{again}\n"


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # the terminal may be gone
        sys.stderr.write(text)
    _flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


@contextmanager
def _signals_are(effect: signal.Handlers) -> Iterator[None]:
    """Stop signals but Ctrl-C are ignored, or have their default effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, effect) for number in STOP_SIGNALS if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _within(seconds: float, action: Callable[[], None]) -> None:
    """Run it in a thread that is left behind when it does not return in time; what it raises is said."""

    def run() -> None:
        try:
            action()
        except Exception as error:
            _say(f"closing the run's records failed: {type(error).__name__}: {error}\n")

    thread = threading.Thread(target=run, name="closing", daemon=True)
    thread.start()
    thread.join(seconds)
