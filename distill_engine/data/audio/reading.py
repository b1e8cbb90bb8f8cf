"""Rows of a list of sounds to examples: each sound is looked at once, several at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from distill_engine.data.audio.clips import Place
from distill_engine.data.audio.lists import Listed, placed_rows
from distill_engine.data.audio.sound import (
    Sound,
    SoundError,
    header,
    read_sound,
    require_libraries,
    unusable,
    unusable_header,
)
from distill_engine.data.episodes import Episode, Split, Turn
from distill_engine.data.errors import DataError, shown
from distill_engine.data.formats.records import checked_text
from distill_engine.data.kinds.protocol import Reading
from distill_engine.recipe.problem import did_you_mean

FIX = "Correct the row, remove it, or let data.max_bad_rows leave some out."
_AHEAD = 64  # rows whose sounds are looked at meanwhile
_Given = TypeVar("_Given")
_Found = TypeVar("_Found")


class Options(Protocol):
    """What is asked of a source of sounds; see its kind."""

    @property
    def title(self) -> str: ...
    @property
    def audio(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def language(self) -> str | None: ...
    @property
    def languages(self) -> Sequence[str] | None: ...
    @property
    def max_seconds(self) -> float | None: ...
    @property
    def min_seconds(self) -> float | None: ...
    @property
    def leading_space(self) -> bool: ...
    @property
    def read_all(self) -> bool: ...
    def limit(self, split: Split) -> int | None: ...


def read_examples(options: Options, listed: Listed, split: Split, reading: Reading) -> Iterator[Episode]:
    """The examples of a split, each with a note of its sound's place. Raises DataError with file and line."""
    require_libraries()
    table = listed.table()
    for key, column in (("audio", options.audio), ("text", options.text)):
        table.require(column, key, options.title)
    look, count, limit = _Look(options, listed, reading), 0, options.limit(split)
    for found in _ahead(look, placed_rows(listed)):
        if limit is not None and count >= limit:
            break
        if isinstance(found, DataError):
            reading.leave_out(found)
        elif isinstance(found, str):
            reading.dropped[found] += 1
        else:
            count += 1
            yield Episode((found,))
    if options.language is not None and not look.saw_language:  # which a row may leave out, JSON lines' first one too
        table.require(options.language, "language", options.title)
    if not count:
        raise DataError(
            f"{table.title} holds no example for the {split} split of {options.title!r}"
            f"{': ' + '; '.join(reading.lines) if reading.lines else ''}. Check the file and the filters."
        )


class _Look:
    """A row's example, the filter that leaves it out, or what is wrong with it."""

    def __init__(self, options: Options, listed: Listed, reading: Reading) -> None:
        self._options = options
        self._listed = listed
        self._window = reading.seconds
        self._known = reading.languages
        self.saw_language = False

    def __call__(self, placed: tuple[int, str, object]) -> Turn | str | DataError:
        number, where, row = placed
        try:
            if isinstance(row, DataError):
                return row
            if not isinstance(row, Mapping):
                return DataError(f"{where}: not an object but {shown(row)}. A row has columns. {FIX}")
            return self._example(number, where, row)
        except SoundError as error:
            return DataError(f"{where}: {error}. {FIX}")
        except DataError as error:
            return error

    def _example(self, number: int, where: str, row: Mapping[str, object]) -> Turn | str:
        asked = self._options
        language = ""
        if asked.language is not None and asked.language in row:
            self.saw_language = True
            language = _language(row[asked.language], where, asked.language)
        if language and asked.languages is not None and language not in asked.languages:
            return "languages"
        _require_known(language, self._known, where)
        for column in (asked.audio, asked.text):
            if row.get(column) is None:
                raise DataError(f"{where}: no column {column!r}; it has {', '.join(map(str, row))}. {FIX}")
        text = checked_text(row[asked.text], where, asked.text, FIX).strip()
        if not text:
            raise DataError(f"{where}: the text `{asked.text}` is empty. Nothing is learnt from it. {FIX}")
        at = self._listed.at(row[asked.audio], number)
        source = self._listed.source(row[asked.audio])
        samples, rate = header(source)
        if reason := unusable_header(samples, rate):
            raise SoundError(f"{_named(at)} {reason}")
        seconds = samples / rate
        if asked.max_seconds is not None and seconds > asked.max_seconds:
            return "max_seconds"
        if asked.min_seconds is not None and seconds < asked.min_seconds:
            return "min_seconds"
        if self._window is not None and seconds > self._window:
            raise SoundError(
                f"{_named(at)} lasts {seconds:.1f} s, but the model hears {self._window:g} s at a time. Cut it, or set "
                f"max_seconds: {self._window:g} to leave longer ones out"
            )
        digest = ""
        if asked.read_all:
            sound = read_sound(source)
            digest = sound.digest
            samples = len(sound.samples)  # headers of some files promise more
            self._check(sound, str(_named(at)))
        text = f" {text}" if asked.leading_space else text
        return Turn("", text, note=Place(at, samples, rate, where.rpartition(", ")[2], digest, language).note)

    def _check(self, sound: Sound, name: str) -> None:
        reason = unusable_header(len(sound.samples), sound.rate) or unusable(sound)
        if reason:
            raise SoundError(f"{name} {reason}")


def _language(value: object, where: str, column: str) -> str:
    """The code that a row names; empty where it names none."""
    return "" if value is None else checked_text(value, where, column, FIX).strip()


def _require_known(language: str, known: Collection[str] | None, where: str) -> None:
    if not language or known is None or language in known:
        return
    some, close = ", ".join(sorted(known)[:8]), did_you_mean(language, known)
    raise DataError(
        f"{where}: the language is {language!r}, which the tokenizer has no token for; of its {len(known)} languages "
        f"some are {some}. {f'{close} ' if close else ''}{FIX}"
    )


def _named(at: object) -> str:
    return at if isinstance(at, str) else "the sound"


def _ahead(function: Callable[[_Given], _Found], given: Iterable[_Given]) -> Iterator[_Found]:
    """map, some calls ahead, in several threads (decoding leaves Python's lock alone), in order."""
    threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    waiting: deque[Future[_Found]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="sounds") as pool:
        try:
            for one in given:
                waiting.append(pool.submit(function, one))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
