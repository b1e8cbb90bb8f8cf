"""The file operations that a safe checkpoint rests on: written to the disk itself, protected, looked for patiently."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from distill_engine.checkpoint.agreement import plain_reason
from distill_engine.checkpoint.faults import fault_point

# With less than this left, a failed write is put down to the full disk whatever its text says: torch reports a disk
# that fills up as "unexpected pos" or "iostream error".
NEARLY_FULL_BYTES = 1 << 20
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)
# NFS may show another node's files and folders only when its attribute cache has run out: 60 s by default (acdirmax).
LATE_SECONDS = 75.0
CHECKPOINT_NAME = re.compile(r"step-(?P<step>\d{8,})(?:\.(?P<again>\d+))?")
_LOOK_SECONDS = (0.05, 1.0)  # first and longest pause between two looks


def write_file(path: Path, content: bytes, *, fault: str = "in_part") -> None:
    """Write `content` and force it to the disk. `fault` names the fault point at half the file."""
    half = len(content) // 2
    with path.open("wb") as file:
        file.write(content[:half])
        file.flush()
        fault_point(fault)
        file.write(content[half:])
        file.flush()
        os.fsync(file.fileno())


def newest_step(run_dir: Path) -> int:
    """Step of a run's newest complete checkpoint, told by its name; -1 if there is none."""
    folder = run_dir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(found["step"]) for name in names if (found := CHECKPOINT_NAME.fullmatch(name))), default=-1)


def protect(path: Path) -> None:
    """Take away everybody's right to write, whatever the umask gave."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IWOTH:
        path.chmod(mode & ~stat.S_IWOTH)


def late_files(sizes: Mapping[Path, int | None], seconds: float) -> list[Path]:
    """Which files this node still does not see, or not in their size (bytes; None: any), after so many seconds.

    They are looked for by name. Names in a listing, sizes and even their absence may come from a cache of this node,
    so a look that finds too little opens the file and its folder, which makes network file systems ask again.
    """
    deadline = time.monotonic() + seconds
    pause, longest = _LOOK_SECONDS
    late = [path for path, size in sizes.items() if not _is_seen(path, size)]
    while late and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, longest)
        for path in late:
            with suppress(OSError, StopIteration):
                next(path.parent.iterdir())
                path.open("rb").close()
        late = [path for path in late if not _is_seen(path, sizes[path])]
    return late


def _is_seen(path: Path, size: int | None) -> bool:
    try:
        return size in (None, path.lstat().st_size)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return False
        raise


def remove_tree(folder: Path) -> None:
    """Delete a folder that may be half deleted already; what cannot be deleted stays."""
    shutil.rmtree(folder, ignore_errors=True)


def free_bytes(folder: Path) -> int:
    """Bytes that this user can still write there; 0 when no more files can be made."""
    facts = os.statvfs(folder)
    # Some file systems have no table of files: they report 0 of 0.
    if facts.f_files and not facts.f_favail:
        return 0
    return facts.f_bavail * facts.f_frsize


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there: where it will lie."""
    place = folder.absolute()
    return next(one for one in (place, *place.parents) if one.exists())


def free_files(folder: Path) -> int | None:
    """Files and folders that this user can still make there; None where the file system has no table of them."""
    facts = os.statvfs(folder)
    return facts.f_favail if facts.f_files else None


def write_failure(error: Exception, folder: Path) -> str:
    """Why a write below `folder` failed, with the full disk named also where the exception does not."""
    if isinstance(error, OSError) and error.errno in FULL_DISK_ERRORS:
        return f"No space left on the disk of {folder} ({plain_reason(error)})"
    try:
        left = free_bytes(folder)
    except OSError:
        return plain_reason(error)
    if isinstance(error, (OSError, RuntimeError)) and left < NEARLY_FULL_BYTES:
        return f"No space left on the disk of {folder}: {left} bytes ({plain_reason(error)})"
    return plain_reason(error)


def readable_bytes(count: int) -> str:
    """A count of bytes for people: 12.3 MiB."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
