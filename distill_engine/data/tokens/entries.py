"""Folders in a cache, each made once for a content: complete or absent, whoever is killed meanwhile.

    <folder>/<name>/<key>/      one entry
    <folder>/locks/<key>.lock   held while it is made: others wait for it instead of making it too

An entry is written under another name, forced to the disk and renamed; what a killed process leaves, the next one that
makes the entry removes. The lock only saves work: on a file system without locks two makers end with one entry all the
same.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from distill_engine.cluster.files import rename_synced
from distill_engine.data.digests import FileDigests

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
Held = TypeVar("Held")


class EntryError(Exception):
    """An entry is damaged; the text says how."""


class UnwritableError(Exception):
    """The entry cannot be written here; the text says why."""


class Entries:
    """The entries of one kind in a cache's folder."""

    def __init__(self, folder: Path, name: str, say: Callable[[str], None]) -> None:
        self._entries, self._locks = folder / name, folder / "locks"
        self._name = name
        self._say = say

    def made(
        self,
        key: str,
        title: str,
        opened: Callable[[Path], Held],
        write: Callable[[Path], Mapping[str, str]],
        digests: FileDigests,
    ) -> Held:
        """The entry of a key, made where it is not there or damaged.

        opened  reads an entry's folder; raises EntryError where anything in it is not as it was written
        write   fills a new, empty folder, forced to the disk; returns its files' sha256

        Raises UnwritableError; what making it raises goes through.
        """
        entry = self._entries / key
        if _exists(entry):
            try:
                return opened(entry)
            except EntryError as damage:
                self._say(f"{title}: the {self._name} in {entry} are damaged ({damage}); they are made again.")
        with self._lock(key, title) as locked:
            with suppress(EntryError):
                if _exists(entry):  # somebody made it while we waited
                    return opened(entry)
            if locked:
                self._remove_leftovers(entry)
            fresh = entry.with_name(f".{entry.name}.{os.getpid()}-{secrets.token_hex(4)}")
            try:
                _new_folder(fresh)
                written = write(fresh)
                if self._publish(fresh, entry, opened):
                    for name, digest in written.items():
                        digests.remember(entry / name, digest)
                return opened(entry)
            except EntryError as error:  # written a moment ago: the disk, not the entry
                raise UnwritableError(str(error)) from error
            finally:
                shutil.rmtree(fresh, ignore_errors=True)

    def _publish(self, fresh: Path, entry: Path, opened: Callable[[Path], Held]) -> bool:
        """Give the finished entry its name; False when somebody without a lock has put a good one there meanwhile."""
        try:
            if _exists(entry):
                with suppress(EntryError):
                    opened(entry)
                    return False
                aside = entry.with_name(f"{fresh.name}-damaged")
                entry.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
            rename_synced(fresh, entry)
        except OSError as error:
            if not _exists(entry):
                raise UnwritableError(str(error)) from error
            return False
        return True

    def _remove_leftovers(self, entry: Path) -> None:
        """What makers of this entry left when they were killed; none is alive while we hold the lock."""
        for leftover in self._entries.glob(f".{entry.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def _lock(self, key: str, title: str) -> Iterator[bool]:
        """Held by one maker of an entry at a time; False where the file system has no locks."""
        lock = FileLock(self._locks / f"{key}.lock", mode=0o666)
        locked = True
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self._say(f"{title}: another process makes its {self._name}; waiting for that.")
                lock.acquire()
        except NotImplementedError:
            locked = False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise UnwritableError(str(error)) from error
            locked = False
        try:
            yield locked
        finally:
            if locked:
                lock.release()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # not ours to look into
        return False


def _new_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UnwritableError(str(error)) from error
