"""Writing a teacher cache's files: complete or absent, by one or several processes that share a folder.

Each rank of a start owns DIR/.work/rank-N.lock while it writes; what it has not finished has its number in the name, so
no two ever write to one file.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from distill_engine.cluster.files import rename_synced, replace_text
from distill_engine.cluster.other_ranks import OtherRanks
from distill_engine.teachers.columns import CacheError
from distill_engine.teachers.store import difference

WORK = ".work"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def write_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]], rank: int) -> None:
    """A folder of .npy files. Another rank may have made it meanwhile: then that one stays. Raises OSError, and leaves
    nothing behind then."""
    fresh = folder.with_name(f".{folder.name}.{rank}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            with (fresh / f"{name}.npy").open("wb") as file:
                head = np.lib.format.header_data_from_array_1_0(array)
                np.lib.format.write_array_header_1_0(file, head)
                file.write(np.ascontiguousarray(array).data)  # numpy's own writing loses the number of an error
                file.flush()
                os.fsync(file.fileno())
        rename_synced(fresh, folder)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not folder.is_dir():
            raise


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Complete or absent. Raises OSError."""
    replace_text(file, json.dumps(content, indent=2) + "\n", sync=True)


@contextmanager
def one_of_the_writers(
    folder: Path, rank: int, world_size: int, entered: OtherRanks | None = None
) -> Iterator[OtherRanks]:
    """This rank alone under its number; `entered`: the ranks of this start, where they have been already. What earlier
    starts have left unfinished is removed. Raises CacheError where another start writes there, OSError."""
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    with _held(folder, rank), nullcontext(entered) if entered else OtherRanks(work, rank, world_size) as others:
        for left in unfinished(folder):
            owner = int(left.name.split(".")[-2])
            if owner == rank or (rank == 0 and owner >= world_size and _is_free(folder, owner)):
                shutil.rmtree(left, ignore_errors=True)
        yield others


def unfinished(folder: Path) -> list[Path]:
    """Folders of arrays that are being written, or were when a start was killed."""
    found = [*folder.glob(".*.*.new"), *folder.glob("*/.*.*.new")]
    return [path for path in found if path.is_dir()]  # files on their way to a name have another number


def unfinished_bytes(folder: Path) -> int:
    """What they take."""
    found = 0
    for file in (file for one in unfinished(folder) for file in one.glob("*.npy")):
        with suppress(FileNotFoundError):  # finished meanwhile
            found += file.stat().st_size
    return found


@contextmanager
def _held(folder: Path, rank: int) -> Iterator[None]:
    lock = FileLock(_lock_file(folder, rank))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CacheError(f"Another process is writing to {folder}. Wait for it, or end it.") from error
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        _lock_file(folder, rank).touch()
    try:
        yield
    finally:
        lock.release()


def _is_free(folder: Path, rank: int) -> bool:
    lock = FileLock(_lock_file(folder, rank))
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    lock.release()
    return True


def _lock_file(folder: Path, rank: int) -> Path:
    return folder / WORK / f"rank-{rank}.lock"


def manifest_differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """As `difference`, with the form's own keys, and columns by name."""

    def flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
        form = dict(manifest.get("form", {}))
        columns = {f"column {one['name']}": [one["width"], one["dtype"]] for one in form.pop("columns", [])}
        columns |= {f"constant {name}": shape for name, shape in manifest.get("constants", {}).items()}
        rest = {key: value for key, value in manifest.items() if key not in ("form", "constants")}
        return {**rest, **form, **columns}

    return difference(flat(there), flat(wanted))
