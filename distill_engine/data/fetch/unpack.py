"""A tar archive into a folder of its own, trusting nothing in it."""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from distill_engine.data.errors import DataError, shown

LARGEST_UNPACKED_BYTES = 16 * 1024**3
MOST_MEMBERS = 10_000
_CHUNK_BYTES = 1024 * 1024
_DAMAGED = (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError)


class UnpackError(DataError):
    """An archive that is damaged or hostile. Nothing of it may be used."""


def unpack(archive: Path, folder: Path) -> list[str]:
    """Write the archive's files below `folder`, which is new and empty; returns their paths relative to it, sorted.

    Only plain files and folders are taken, with ordinary permissions. Raises UnpackError: not a tar archive, cut
    off, a path outside the folder, a link, a device, two members of one name, more than `MOST_MEMBERS` members or
    `LARGEST_UNPACKED_BYTES`; OSError when the disk is full. What was written before stays for the caller to remove.
    """
    written: list[str] = []
    left = LARGEST_UNPACKED_BYTES
    try:
        with tarfile.open(archive, "r:*") as tar:
            for number, member in enumerate(tar, 1):
                if number > MOST_MEMBERS:
                    raise _refused(archive, member, f"is one of more than {MOST_MEMBERS} members")
                place = folder / _safe_path(archive, member)
                if member.isdir():
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                source = tar.extractfile(member)
                assert source is not None, member.name  # _safe_path lets plain files and folders pass only
                left -= _copy(archive, member, source, place, left)
                written.append(str(place.relative_to(folder)))
    except UnpackError:
        raise
    except _DAMAGED as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno is None:  # a decompressor speaks, not the disk
            raise _damaged(archive, error) from error
        raise
    return sorted(written)


def _safe_path(archive: Path, member: tarfile.TarInfo) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        raise _refused(archive, member, "is a link, a device or something else that is no plain file")
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise _refused(archive, member, "leads outside the folder")
    if member.isreg() and not path.name:
        raise _refused(archive, member, "has no name")
    return path


def _copy(archive: Path, member: tarfile.TarInfo, source: IO[bytes], place: Path, left: int) -> int:
    """Write one member's bytes to disk for good; returns how many."""
    done = 0
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        file = place.open("xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise _refused(archive, member, "comes twice, or inside a file") from error
    with file:
        while chunk := source.read(_CHUNK_BYTES):
            done += len(chunk)
            if done > left:
                raise _refused(archive, member, f"makes it more than {LARGEST_UNPACKED_BYTES} bytes unpacked")
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if done != member.size:
        raise _refused(archive, member, f"has {done} bytes where its header says {member.size}")
    return done


def _damaged(archive: Path, error: Exception) -> UnpackError:
    return UnpackError(f"{archive} is no tar archive, or is cut off ({type(error).__name__}: {error}). Fetch it again.")


def _refused(archive: Path, member: tarfile.TarInfo, what: str) -> UnpackError:
    return UnpackError(
        f"{archive}: the member {shown(member.name)} {what}. An archive of dialogues has plain files below one folder. "
        "It is damaged or hostile and is not used; fetch it from a place that you trust."
    )
