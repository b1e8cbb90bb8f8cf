"""What all rooms need of files: one digest, one way to replace a file, one way to force names to the disk."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_READ_BYTES = 1 << 20


@contextmanager
def replacing(file: Path, *, sync: bool = False) -> Iterator[TextIO]:
    """Gives a file to write, which takes the place of `file` in one step when the block ends well: whoever reads it, or
    dies in the middle, leaves the old one or the new one. With `sync` it has reached the disk before its name does, and
    the name before the block is left.

    Raises OSError, and leaves nothing behind then.
    """
    fresh = _beside(file)
    try:
        with fresh.open("w", encoding="utf-8", newline="") as written:
            yield written
            if sync:
                written.flush()
                os.fsync(written.fileno())
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
    if sync:
        sync_folder(file.parent)


def replace_text(file: Path, text: str, *, sync: bool = False) -> None:
    """The same for a text that is there already."""
    with replacing(file, sync=sync) as fresh:
        fresh.write(text)


def replace_bytes(file: Path, content: bytes, *, sync: bool = False) -> None:
    """The same for bytes."""
    with replacing(file, sync=sync) as fresh:
        fresh.buffer.write(content)


def create_text(file: Path, text: str) -> None:
    """The same for a file that another process may have made first: then that one stays. Raises OSError."""
    fresh = _beside(file)
    try:
        fresh.write_text(text, encoding="utf-8")
        try:
            os.link(fresh, file)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not file.exists():
                fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def _beside(file: Path) -> Path:
    """Where what takes a file's place is written. Its number is its own: processes of other nodes may have this one's,
    and threads share it."""
    return file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.new")


def rename_synced(fresh: Path, target: Path) -> None:
    """Give a finished file or folder its name, also after a power failure. Raises OSError."""
    fresh.rename(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Force names created, renamed or deleted in `folder` to the disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Force a folder that was just written to the disk: its files, its folders and their names."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with Path(parent, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def sha256_of(path: Path, *, sync: bool = False) -> str:
    """Hexadecimal sha256 of a file's bytes; with `sync` it is forced to the disk first. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def digest_of(facts: object) -> str:
    """Hexadecimal sha256 that changes with any of these facts, which are as JSON has them; else their `str` counts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def default_cache_folder(environment: Mapping[str, str]) -> Path:
    """$DISTILL_ENGINE_CACHE, or `distill_engine` in $XDG_CACHE_HOME, or in ~/.cache."""
    if own := environment.get("DISTILL_ENGINE_CACHE"):
        return Path(own).expanduser()
    shared = environment.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path("~/.cache").expanduser()) / "distill_engine"


def folder_of_cache(named: str | None, environment: Mapping[str, str]) -> Path:
    """The folder that a recipe names (data.cache_dir), or the default one."""
    return Path(named).expanduser() if named else default_cache_folder(environment)
