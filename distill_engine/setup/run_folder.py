"""The run folder: usable by every rank, and used by one run at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from distill_engine.checkpoint.agreement import RankFailures, everywhere, on_first_rank
from distill_engine.checkpoint.files import (
    LATE_SECONDS,
    free_bytes,
    late_files,
    readable_bytes,
    write_failure,
    write_file,
)
from distill_engine.cluster.ranks import Ranks

LOCK_FILE = ".lock"
PRIVATE = 0o700  # samples of the data, and what a run says, are nobody else's
POLL_SECONDS = 0.05
LOCKS_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
TAKEN = (errno.EACCES, errno.EAGAIN)
# A file server gives a dead node's lock back when that node's lease has ended.
OWN_JOB_SECONDS = 300.0
_LOG = logging.getLogger(__name__)


class RunFolderError(ValueError):
    """The run folder cannot be used; the text says by whom it is held or what it lacks, and what to do."""


class OwnLockError(RunFolderError):
    """The lock of a former start of this job is still held, which ends some time."""

    may_pass = True


def reason_of(error: Exception, folder: Path) -> str:
    """Why a run cannot live in a folder, for everybody to tell."""
    return str(error) if isinstance(error, RunFolderError) else write_failure(error, folder)


def check_run_folder(folder: Path, ranks: Ranks, needed_bytes: int = 0, *, patience: float = LATE_SECONDS) -> None:
    """Make sure, before any work, that a run can live in `folder`. Collective; RunFolderError on all ranks if not.

    It is made if missing, for its owner only. Every rank writes a file there, sees the file of rank 0 (so it is one
    shared folder), owns what it writes (resuming asks for that), and finds `needed_bytes` free. What rank 0 makes must
    come into sight of the others within `patience` seconds: network file systems show it late.
    """

    def explain(error: Exception) -> str:
        return reason_of(error, folder)

    try:
        token = on_first_rank(ranks, lambda: _make(folder), explain)
        mine = folder / f".probe-{token}-{ranks.rank}"
        try:
            everywhere(ranks, lambda: _probe(mine, token, needed_bytes, patience), explain)
            everywhere(ranks, lambda: _see_first_rank(folder, token, patience), explain)
        finally:
            _remove_if_there(mine)
    except RankFailures as failures:
        room = f", with {readable_bytes(needed_bytes)} free" if needed_bytes else ""
        raise RunFolderError(
            f"The run folder {folder} cannot be used: {failures}. It must be one folder that all ranks share and can "
            f"write{room}. Repair that, or choose another folder (--run-dir)."
        ) from failures


def _make(folder: Path) -> str:
    folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)  # one that is there keeps the rights its owner gave it
    return secrets.token_hex(8)


def _probe(path: Path, token: str, needed_bytes: int, patience: float) -> None:
    late_files({path.parent: None}, patience)
    write_file(path, token.encode())
    owner = path.stat().st_uid
    if owner != os.geteuid():
        raise RunFolderError(f"files made there belong to user {owner}, not to user {os.geteuid()} who makes them")
    left = free_bytes(path.parent)
    if left < needed_bytes:
        raise RunFolderError(f"{readable_bytes(left)} are free, checkpoints need {readable_bytes(needed_bytes)}")


def _see_first_rank(folder: Path, token: str, patience: float) -> None:
    path = folder / f".probe-{token}-0"
    late_files({path: len(token)}, patience)
    if not path.is_file() or path.read_text(encoding="utf-8") != token:
        raise RunFolderError("the file that rank 0 wrote there is not seen here: the folder is not shared")


def _remove_if_there(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a folder that cannot be written holds no probe; its problem is already being reported
        return


class RunLock:
    """Holds a run folder against a second run, from `acquire` until `release` or the death of rank 0's process.

    The lock is the operating system's, on `<folder>/.lock`, so that nothing stale is left behind by a kill; the
    file's text (process, host, job) is only for people. Used as a context manager or with its two methods, on all
    ranks. On a file system without locks it warns and lets the run go on.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        *,
        wait_seconds: float = 5.0,
        own_job_seconds: float = OWN_JOB_SECONDS,
        warn: Callable[[str], None] = _LOG.warning,
    ) -> None:
        self.path = folder / LOCK_FILE
        self._ranks = ranks
        self._wait_seconds = wait_seconds
        self._own_job_seconds = own_job_seconds
        self._warn = warn
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock on rank 0. Collective; RunFolderError on all ranks, naming the holder, if it is taken.

        A run that was just killed may need a moment to die, so it is tried for `wait_seconds`; a former start of this
        Slurm job, whose node may be dead, for `own_job_seconds`.
        """
        try:
            on_first_rank(self._ranks, self._acquire_here, str)
        except RankFailures as failures:
            raise RunFolderError(failures.reasons[0]) from failures

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _acquire_here(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun, told = time.monotonic(), False
        while not self._try():
            holder = self._holder_there()
            own = _is_this_job(holder)
            waited = time.monotonic() - begun
            if waited >= (self._own_job_seconds if own else self._wait_seconds):
                raise (OwnLockError if own else RunFolderError)(self._taken(holder))
            if own and not told:
                told = True
                self._warn(f"{self.path} is still locked by the former start of this job ({holder}): waiting for it")
            time.sleep(POLL_SECONDS)

    def _try(self) -> bool:
        """Whether the lock is ours now. Opened anew each time: a file server may have forgotten the file (ESTALE)."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)  # who else may use it: the umask
        try:
            # A record lock, not flock: forked data workers would inherit an flock and hold it beyond our death.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in LOCKS_UNSUPPORTED:
                os.close(handle)
                if error.errno in TAKEN:
                    return False
                raise OSError(error.errno, f"cannot be locked: {error.strerror}", str(self.path)) from error
            self._warn(f"{self.path} cannot be locked here ({error}): a second run in it would go unnoticed.")
        try:
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(_holder()).encode())
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return True

    def _holder_there(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").strip() or "an unknown process"
        except OSError:
            return "an unknown process"

    def _taken(self, holder: str) -> str:
        return (
            f"The run folder {self.path.parent} is in use by another run ({holder}). Two runs in one folder would "
            "overwrite each other's checkpoints. Wait for it or end it, or choose another folder (--run-dir)."
        )


def _holder() -> dict[str, str | int]:
    holder: dict[str, str | int] = {"pid": os.getpid(), "host": socket.gethostname()}
    if job := os.environ.get("SLURM_JOB_ID"):
        holder["job"] = job
    return holder


def _is_this_job(holder: str) -> bool:
    """Whether a lock's text is of the Slurm job that this process belongs to: a job has one start at a time."""
    job = os.environ.get("SLURM_JOB_ID")
    try:
        return bool(job) and json.loads(holder).get("job") == job
    except (ValueError, AttributeError):
        return False
