"""The datasets of a recipe as token ids: read, tokenised once, kept in the token cache; a person sees how far it is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from distill_engine.checkpoint.files import free_bytes, readable_bytes
from distill_engine.cluster.facts import read_cluster
from distill_engine.cluster.files import folder_of_cache
from distill_engine.data.audio.clips import SpeechDataset
from distill_engine.data.audio.frontend import Frontend
from distill_engine.data.audio.stored import FeatureCache
from distill_engine.data.config import DataSection
from distill_engine.data.episodes import Episode, Split
from distill_engine.data.errors import DataError
from distill_engine.data.kinds.named import kind_of
from distill_engine.data.kinds.protocol import Reading, Source
from distill_engine.data.tokens.cache import Content, TokenCache
from distill_engine.data.tokens.entries import UnwritableError
from distill_engine.data.tokens.tokenised import TokenisedDataset
from distill_engine.data.tokens.tokenize import DialogueTokenizer
from distill_engine.setup.languages import Wrappings
from distill_engine.setup.listening import with_whole_texts

_WORTH_A_LINE_SECONDS = 10.0
_USUAL = Wrappings()
Prompts = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class RecipeData:
    """The splits of a recipe's datasets.

    labels        names of the training datasets, in the recipe's order
    valid_labels  names of those that have a validation split
    """

    labels: tuple[str, ...]
    train: tuple[TokenisedDataset, ...]
    valid_labels: tuple[str, ...]
    valid: tuple[TokenisedDataset, ...]


def load_datasets(
    data: DataSection, encoder: DialogueTokenizer, wrappings: Wrappings = _USUAL, frontend: Frontend | None = None
) -> RecipeData:
    """Training and validation splits of all datasets. Raises DataError for files that are bad or hold no example.

    frontend  of a model that hears
    """
    cache = _cache(data)
    train = _split(data, encoder, "train", cache, wrappings, frontend)
    valid = _split(data, encoder, "valid", cache, wrappings, frontend)
    return RecipeData(tuple(train), tuple(train.values()), tuple(valid), tuple(valid.values()))


def load_split(
    data: DataSection,
    encoder: DialogueTokenizer,
    split: Split,
    wrappings: Wrappings = _USUAL,
    frontend: Frontend | None = None,
) -> dict[str, TokenisedDataset]:
    """One split of the datasets by their names, in the recipe's order; datasets of files that name none for it are left
    out, except for training. Raises DataError for files that are bad or hold no example."""
    return _split(data, encoder, split, _cache(data), wrappings, frontend)


def cache_folder(data: DataSection) -> Path:
    """Where tokenised datasets and digests of files are kept."""
    return folder_of_cache(data.cache_dir, os.environ)


def _cache(data: DataSection) -> TokenCache:
    return TokenCache(cache_folder(data), _say if _speaks() else _keep_quiet)


def _speaks() -> bool:
    return read_cluster(os.environ).rank == 0


def _split(
    data: DataSection,
    encoder: DialogueTokenizer,
    split: Split,
    cache: TokenCache,
    wrappings: Wrappings,
    frontend: Frontend | None,
) -> dict[str, TokenisedDataset]:
    loaded = {}
    for source in data.datasets:
        if split != "train" and not kind_of(source).has(source, split):
            continue
        own = encoder.keeping(kind_of(source).keep or "last")
        own = own.within(wrappings.layouts[source.title]) if source.title in wrappings.layouts else own
        loaded[source.title] = _loaded(data, source, split, own, cache, wrappings.prompts, frontend)
    return loaded


def _loaded(
    data: DataSection,
    source: Source,
    split: Split,
    encoder: DialogueTokenizer,
    cache: TokenCache,
    prompts: Prompts,
    frontend: Frontend | None,
) -> TokenisedDataset:
    """One dataset's split, with its sounds where it has some."""
    title, heard = f"{source.title}, {split}", frontend if kind_of(source).inputs == "audio" else None
    with _display(f"tokenising {title}", "episodes", _speaks()) as display:
        content = _content(data, source, split, prompts, heard, display)
        dataset = cache.dataset(content, encoder, display.add)
        if heard is not None:
            sounds = kind_of(source).sounds(source, split)
            dataset = with_whole_texts(SpeechDataset.of(dataset, title, sounds, heard, prompts), data, display.say)
    if len(dataset) == 0:
        raise DataError(f"Dataset {source.title!r} has no {split} example. Correct its file, or leave it out.")
    if isinstance(dataset, SpeechDataset) and kind_of(source).stores_features(source):
        dataset = _with_features(dataset, cache_folder(data))
    return dataset


def _with_features(dataset: SpeechDataset, folder: Path) -> SpeechDataset:
    """The same with its features on the disk, where there is room for them."""
    with _display(f"computing features of {dataset.source}", "sounds", _speaks()) as display:

        def begin(needed: int) -> None:
            free = free_bytes(folder)
            if needed > free:
                both = f"they take about {readable_bytes(needed)}, {readable_bytes(free)} are free there"
                raise UnwritableError(both)
            display.begin()

        return FeatureCache(folder, _say if _speaks() else _keep_quiet).stored(dataset, begin, display.add)


def _content(
    data: DataSection, source: Source, split: Split, prompts: Prompts, frontend: Frontend | None, display: Display
) -> Content:
    """What the token cache knows a split by, and how it is read."""
    kind = kind_of(source)
    facts = {"kind": source.kind, "version": kind.version, "max_bad_rows": data.max_bad_rows}
    facts |= kind.facts(source, split)
    seconds = None if frontend is None else frontend.seconds
    if seconds is not None:
        facts["seconds"] = seconds
    if kind.language_column(source) is not None:
        facts["languages_known"] = sorted(prompts)  # rows that name others are wrong
    title = f"{source.title}, {split}"
    left_out: list[str] = []

    def episodes() -> Iterator[Episode]:
        display.begin()
        reading = Reading(data.root, data.max_bad_rows, seconds, prompts.keys())
        yield from kind.read(source, split, reading)
        left_out[:] = reading.lines
        for line in left_out:
            display.say(f"{title}: {line}")

    return Content(title, tuple(kind.files(source, split, data.root)), facts, episodes, left_out)


class Display:
    """What is done and how far it is, in a terminal; one line at the end if it took long, everywhere."""

    def __init__(self, title: str, console: Console, say: Callable[[str], None], things: str = "episodes") -> None:
        self._title = title
        self.say = say
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TextColumn(f"{{task.completed:,.0f}} {things}"),
            TimeElapsedColumn(), console=console, transient=True, disable=console.quiet or not console.is_terminal,
        )  # fmt: skip
        self._begun: float | None = None

    def begin(self) -> None:
        """There is something to do. How many episodes is known when the last one has been read."""
        if self._begun is None:
            self._begun = time.monotonic()
            self._bar.start()
            self._bar.add_task(self._title, total=None)

    def add(self, episodes: int) -> None:
        """So many more are done."""
        if self._bar.tasks:
            self._bar.advance(self._bar.tasks[0].id, episodes)

    def end(self) -> None:
        """Take the picture away."""
        self._bar.stop()
        seconds = 0.0 if self._begun is None else time.monotonic() - self._begun
        if seconds > _WORTH_A_LINE_SECONDS:
            self.say(f"{self._title}: done in {seconds:.0f} s")


@contextmanager
def _display(title: str, things: str, speaks: bool) -> Iterator[Display]:
    display = Display(title, Console(stderr=True, quiet=not speaks), _say if speaks else _keep_quiet, things)
    try:
        yield display
    finally:
        display.end()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _keep_quiet(_text: str) -> None:
    pass
