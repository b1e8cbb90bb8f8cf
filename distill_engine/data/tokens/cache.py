"""Tokenised datasets on disk: each made once for a content, then memory-mapped by every process of a machine.

    <folder>/tokens/<key>/        one entry (entry.py), made once (entries.py)
    <folder>/digests/             remembered digests (data/digests.py)

The key is the content: the bytes of the source files, the kind of data with its version and options, tokenizer and
delimiter; not the place or the time of a file, nor this program: whoever changes what a kind reads, or how it is
tokenised, raises the kind's `version`, or `_FORMAT`. Any part of the folder may be deleted while nothing runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill_engine.cluster.files import digest_of
from distill_engine.data.digests import FileDigests
from distill_engine.data.episodes import Episode
from distill_engine.data.tokens.entries import Entries, UnwritableError
from distill_engine.data.tokens.entry import open_entry, write_entry
from distill_engine.data.tokens.tokenised import TokenisedDataset
from distill_engine.data.tokens.tokenize import DialogueTokenizer, warn_of_skipped

_LOG = logging.getLogger(__name__)
_FORMAT = 2


@dataclass(frozen=True)
class Content:
    """What is tokenised.

    title     its name for people
    files     the files (or folders of files) that `episodes` reads; none: it makes them up, and is not cached
    options   all else that decides what it reads, as plain values: kind of data and its version, and its options
    episodes  reads it, from the beginning, as often as it is called
    left_out  what people should know of rows that were left out, once `episodes` has been read to its end
    """

    title: str
    files: tuple[Path, ...]
    options: Mapping[str, object]
    episodes: Callable[[], Iterable[Episode]]
    left_out: Sequence[str] = ()


class TokenCache:
    """Gives tokenised datasets, from the disk where they are there, and leaves them there where not.

    A folder that cannot be written is no error: what it holds is used, the rest is tokenised in memory, and `say`
    is told once.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = _LOG.warning) -> None:
        self._entries = Entries(folder, "tokens", say)
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
            return _in_memory(source, encoder, progress)

        fresh = []

        def write(folder: Path) -> dict[str, str]:
            fresh.append(folder)
            return write_entry(folder, encoder.chunks(source.episodes()), progress, source.left_out)

        def opened(folder: Path) -> TokenisedDataset:
            return open_entry(folder, encoder, self._digests)

        try:
            dataset = self._entries.made(key, source.title, opened, write, self._digests)
        except UnwritableError as error:
            self._give_up(str(error))
            return _in_memory(source, encoder, progress)
        if fresh:
            warn_of_skipped(dataset.skipped)
        return dataset

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

    def _give_up(self, reason: str) -> None:
        if not self._gave_up:
            self._gave_up = True
            self._say(
                f"The token cache {self._folder} cannot be written ({reason}): datasets are tokenised in the memory of "
                "each process, at every start. data.cache_dir names another folder."
            )


def _in_memory(source: Content, encoder: DialogueTokenizer, progress: Callable[[int], None]) -> TokenisedDataset:
    dataset = encoder.tokenise(source.episodes(), progress)
    return replace(dataset, left_out=tuple(source.left_out))


def _files_below(path: Path) -> list[Path]:
    """A file itself, or all files of a folder in a fixed order."""
    place = path.expanduser()
    return sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
