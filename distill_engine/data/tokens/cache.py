"""Tokenised datasets on disk: each made once for a content, then memory-mapped by every process of a machine.

    <folder>/tokens/<key>/        one entry (entry.py)
    <folder>/locks/<key>.lock     held while an entry is made: others wait for it instead of making it too
    <folder>/digests/             remembered digests (data/digests.py)

The key is the content: the bytes of the source files, the kind of data with its version and options, tokenizer and
delimiter; not the place or the time of a file, nor this program: whoever changes what a kind reads, or how it is
tokenised, raises the kind's `version`, or `_FORMAT`. An entry is written under another name, forced to the disk and
renamed, so it is complete or absent; what a killed process leaves, the next one that makes the entry removes. The lock
only saves work: on a file system without locks two makers end with one entry all the same. Any part of the folder may
be deleted while nothing runs.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from distill_engine.cluster.files import digest_of, rename_synced
from distill_engine.data.digests import FileDigests
from distill_engine.data.episodes import Episode
from distill_engine.data.tokens.entry import EntryError, UnwritableError, open_entry, write_entry
from distill_engine.data.tokens.tokenised import TokenisedDataset
from distill_engine.data.tokens.tokenize import DialogueTokenizer, warn_of_skipped

_LOG = logging.getLogger(__name__)
_FORMAT = 2
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Content:
    """What is tokenised.

    title     its name for people
    files     the files (or folders of files) that `episodes` reads; none: it makes them up, and is not cached
    options   all else that decides what it reads, as plain values: kind of data and its version, and its options
    episodes  reads it, from the beginning, as often as it is called
    """

    title: str
    files: tuple[Path, ...]
    options: Mapping[str, object]
    episodes: Callable[[], Iterable[Episode]]


class TokenCache:
    """Gives tokenised datasets, from the disk where they are there, and leaves them there where not.

    A folder that cannot be written is no error: what it holds is used, the rest is tokenised in memory, and `say`
    is told once.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = _LOG.warning) -> None:
        self._entries, self._locks = folder / "tokens", folder / "locks"
        self._digests = FileDigests(folder / "digests")
        self._folder = folder
        self._say = say
        self._gave_up = False

    def dataset(self, source: Content, encoder: DialogueTokenizer, progress: Callable[[int], None]) -> TokenisedDataset:
        """The tokenised source; `progress` hears of so many episodes more while it is made.

        Raises what reading the source raises.
        """
        key = self._key(source, encoder)
        if key is None:
            return encoder.tokenise(source.episodes(), progress)
        entry = self._entries / key
        found = self._opened(entry, source, encoder)
        if found is not None:
            return found
        try:
            return self._made(entry, source, encoder, progress)
        except UnwritableError as error:
            self._give_up(str(error))
            return encoder.tokenise(source.episodes(), progress)

    def _key(self, source: Content, encoder: DialogueTokenizer) -> str | None:
        """The entry's name; None when there is no content to know it by."""
        try:
            digests = [self._digests.of(file) for path in source.files for file in _files_below(path)]
        except OSError:
            return None  # the reader says what is wrong with the file
        if not digests:
            return None
        facts = [_FORMAT, encoder.identity, digests, dict(source.options)]
        return digest_of(facts)[:32]

    def _opened(self, entry: Path, source: Content, encoder: DialogueTokenizer) -> TokenisedDataset | None:
        """The entry, if it is there and as it was written."""
        if not _exists(entry):
            return None
        try:
            return open_entry(entry, encoder, self._digests)
        except EntryError as damage:
            self._say(f"{source.title}: the tokens in {entry} are damaged ({damage}); they are made again.")
            return None

    def _made(
        self, entry: Path, source: Content, encoder: DialogueTokenizer, progress: Callable[[int], None]
    ) -> TokenisedDataset:
        with self._lock(entry.name, source) as locked:
            with suppress(EntryError):
                if _exists(entry):  # somebody made it while we waited
                    return open_entry(entry, encoder, self._digests)
            if locked:
                self._remove_leftovers(entry)
            fresh = entry.with_name(f".{entry.name}.{os.getpid()}-{secrets.token_hex(4)}")
            try:
                _new_folder(fresh)
                digests = write_entry(fresh, encoder.chunks(source.episodes()), progress)
                if self._publish(fresh, entry, encoder):
                    for name, digest in digests.items():
                        self._digests.remember(entry / name, digest)
                dataset = open_entry(entry, encoder, self._digests)
            except EntryError as error:  # written a moment ago: the disk, not the entry
                raise UnwritableError(str(error)) from error
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        warn_of_skipped(dataset.skipped)
        return dataset

    def _publish(self, fresh: Path, entry: Path, encoder: DialogueTokenizer) -> bool:
        """Give the finished entry its name; False when somebody without a lock has put a good one there meanwhile."""
        try:
            if _exists(entry):
                with suppress(EntryError):
                    open_entry(entry, encoder, self._digests)
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
    def _lock(self, key: str, source: Content) -> Iterator[bool]:
        """Held by one maker of an entry at a time; False where the file system has no locks."""
        lock = FileLock(self._locks / f"{key}.lock", mode=0o666)
        locked = True
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self._say(f"{source.title}: another process is tokenising it; waiting for that.")
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

    def _give_up(self, reason: str) -> None:
        if not self._gave_up:
            self._gave_up = True
            self._say(
                f"The token cache {self._folder} cannot be written ({reason}): datasets are tokenised in the memory of "
                "each process, at every start. data.cache_dir names another folder."
            )


def _files_below(path: Path) -> list[Path]:
    """A file itself, or all files of a folder in a fixed order."""
    place = path.expanduser()
    return sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]


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
