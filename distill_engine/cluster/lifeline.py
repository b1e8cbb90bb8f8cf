"""Ranks never outlive their launcher: a thread that notices when it is gone. No torch.

A launcher that is killed cannot end its ranks; they would train on, or wait in a collective for ever, on GPUs that
somebody else was given. The kernel's own parent-death signal is not enough: it is one signal, and it does not see the
launcher of a launcher (`deepspeed` starts `launch.py`, which starts the ranks).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import psutil

POLL_SECONDS = 0.5
GRACE_SECONDS = 60.0  # for the step in hand and a checkpoint
# How many processes above a rank belong to its launcher. More would tie a run to the shell that it was started from.
GENERATIONS = {"deepspeed": 2, "python": 0, "environment": 0}


def watch_launcher(
    launcher: str, ask_to_stop: Callable[[], None], grace_seconds: float = GRACE_SECONDS
) -> threading.Thread | None:
    """Start watching; None for a process without a launcher, which may outlive its shell (nohup).

    When the launcher is gone `ask_to_stop` is called, in the watching thread, and this process gets SIGKILL after the
    grace. No signal asks: the launcher may have sent one of each kind already, and a second one can mean "at once".
    """
    ancestors = _ancestors(GENERATIONS.get(launcher, 1))
    if not ancestors:
        return None

    def watch() -> None:
        while _still_above(ancestors):
            time.sleep(POLL_SECONDS)
        _end_this_process(ask_to_stop, grace_seconds)

    thread = threading.Thread(target=watch, name="launcher-watch", daemon=True)
    thread.start()
    return thread


def parent_of(pid: int) -> int | None:
    """A process's parent, or None when it is gone or the system does not tell."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.ppid()
    except psutil.Error:
        return None


def _ancestors(generations: int) -> list[tuple[int, int]]:
    """(process, its parent) from this process up."""
    pairs: list[tuple[int, int]] = []
    pid = os.getpid()
    for _ in range(generations):
        parent = os.getppid() if pid == os.getpid() else parent_of(pid)
        if parent is None or (pairs and parent <= 1):
            break
        pairs.append((pid, parent))
        pid = parent
    return pairs


def _still_above(ancestors: list[tuple[int, int]]) -> bool:
    if os.getppid() != ancestors[0][1]:
        return False
    return all(parent_of(pid) == above for pid, above in ancestors[1:])


def _end_this_process(ask_to_stop: Callable[[], None], grace_seconds: float) -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone with the launcher
        sys.stderr.write(f"[process {os.getpid()}] its launcher is gone: saving and ending\n")
        sys.stderr.flush()
    ask_to_stop()
    time.sleep(grace_seconds)
    os.kill(os.getpid(), signal.SIGKILL)
