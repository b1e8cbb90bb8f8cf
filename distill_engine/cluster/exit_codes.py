"""What the exit code of a run tells the launcher, and how it reaches one that loses codes."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

from distill_engine.cluster.files import create_text, replace_text

DONE = 0
FAILED = 1
USAGE = 2  # the command line is wrong
RETRY = 74  # a disk, a lock or memory failed in a way that may pass: the same command again may well go on
STOPPED_AND_SAVED = 75  # asked to stop and checkpointed, or stood still: the same command again goes on
BAD_INPUT = 78  # recipe, configuration or data: starting again cannot help

# Why a run ended with STOPPED_AND_SAVED, where it was not told to stop while it trained.
HUNG = "hung"  # the watchdog ended it
NOT_BEGUN = "stopped before training"

VERDICT_VARIABLE = "DISTILL_VERDICT"
_LOOK_SECONDS = 0.05

# What the system says of a path that was named wrongly. Whatever else goes wrong with a file may pass.
_PROVEN = frozenset(
    {
        errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV,
        errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EPERM, errno.EXDEV,
    }
)  # fmt: skip


def may_pass(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is one that another start may not meet: EIO, ESTALE, no memory.

    An exception with an attribute `may_pass` has decided this itself.
    """
    link: BaseException | None = error
    while link is not None:
        decided = getattr(link, "may_pass", None)
        if decided is not None:
            return bool(decided)
        if isinstance(link, MemoryError):
            return True
        if isinstance(link, OSError):
            return link.errno is not None and link.errno not in _PROVEN
        link = link.__cause__
    return False


def leave_verdict(code: int, reason: str = "", *, unless_there: bool = False) -> None:
    """Write a code, and one line of why, into the file that DISTILL_VERDICT names; nothing when it names none.

    Launchers that end all ranks as soon as one has ended report their own signal instead of the code. It is written in
    one step. `unless_there` keeps what another rank has left: the first error is the cause of those that follow.
    A disk that takes no file leaves the launcher with what it saw itself.
    """
    name = os.environ.get(VERDICT_VARIABLE)
    if not name:
        return
    leave = create_text if unless_there else replace_text
    with suppress(OSError):
        leave(Path(name), f"{code} {' '.join(reason.split())}".rstrip() + "\n")


def await_verdict(seconds: float) -> None:
    """Until some rank has left its verdict and so has said what it had to; for so many seconds where none comes, or
    where DISTILL_VERDICT names no file.

    For a rank that will end badly: its launcher ends all the others then.
    """
    name = os.environ.get(VERDICT_VARIABLE)
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not (name and Path(name).exists()):
        time.sleep(min(left, _LOOK_SECONDS if name else seconds))


def forget_verdict() -> None:
    """Remove what an earlier start has left."""
    if name := os.environ.get(VERDICT_VARIABLE):
        with suppress(OSError):
            Path(name).unlink(missing_ok=True)


def read_verdict(path: Path) -> tuple[int | None, str]:
    """The code that was left there and why; None when there is no file, or it does not begin with a number."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None, ""
    code, _, reason = text.partition(" ")
    return (int(code), " ".join(reason.split())) if code.isdecimal() and code.isascii() else (None, "")
