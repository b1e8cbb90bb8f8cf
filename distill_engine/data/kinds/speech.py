"""Sound and what is said in it: transcripts of speech, or its translation.

Rows come from JSON lines, CSV or TSV files that name sound files, or from datasets in Hugging Face's form, on disk or
by name, whose rows hold the sounds themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from distill_engine.data.kinds.files import HubSource, file_problems, origin_problems
from distill_engine.data.kinds.protocol import Guess, Kind, Reading, Source, Writer
from distill_engine.recipe.problem import Problem
from distill_engine.recipe.section import Positive

if TYPE_CHECKING:
    from distill_engine.data.audio.lists import Listed
    from distill_engine.data.audio.sound import Sounds
    from distill_engine.data.episodes import Episode, Split

_FORMS = (".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
_GUESS_ROWS = 20
# Names of columns in published datasets and in the manifests of other programs.
_AUDIO = ("audio", "path", "audio_path", "audio_filepath", "file", "file_name", "wav")
_LANGUAGE = ("language", "lang", "locale")
_TEXT = ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text")


class SpeechSource(HubSource):
    """One source of speech."""

    kind: Literal["speech"]
    name: str = Field("speech", description="Name in metrics.")
    audio: str = Field("audio", description="Column of the sound: a path, or in a dataset the sound itself.")
    text: str = Field("text", description="Column of what is said.")
    target_language: str | None = Field(
        None,
        description="Language of texts whose rows name none, by the tokenizer's code (`en`); null: the run's, which is "
        "the first that a dataset names, else the one of the teacher's settings.",
    )
    language: str | None = Field(None, description="Column of each row's own language, by the tokenizer's code.")
    languages: list[str] | None = Field(None, description="Leave out rows that name another language than these.")
    max_seconds: Positive | None = Field(
        None, description="Leave out longer sounds; null: one that is longer than the teacher's window is an error."
    )
    min_seconds: Positive | None = Field(None, description="Leave out shorter sounds.")
    leading_space: bool = Field(True, description="Begin texts with a space, as published models of speech write them.")
    read_all: bool = Field(
        True,
        description="Decode every sound once before training, which finds silent and broken ones; false: read headers "
        "only, a broken sound ends the run.",
    )
    cache_features: bool = Field(
        False,
        description="Compute features once and keep them on the disk in data.cache_dir (float16); false: the loader "
        "computes them each time.",
    )


class Speech(Kind):
    """One example a row; an input is a window of sound."""

    name, meaning, keep = "speech", "sound and what is said in it: transcripts, translations", ""
    inputs = "audio"
    metrics = ("wer", "cer")
    words = ("sound", "text")
    version = 3
    Options = SpeechSource

    def problems(self, source: Source, root: str | None) -> Iterator[Problem]:
        """See Kind."""
        from distill_engine.data.audio.sound import missing_library

        own = _own(source)
        if reason := missing_library():
            yield Problem("kind", f"is {self.name!r}, which needs the extra `speech`", reason)
        yield from origin_problems(own, "Speech comes", "Speech is read")
        if own.audio == own.text:
            yield Problem("text", f"is {own.text!r}, and so is audio", "A row has a sound and a text")
        if own.languages is not None and own.language is None:
            what = f"is {own.languages}, but language is null"
            yield Problem("languages", what, "It is compared with the column of languages", "Name the column")
        if own.min_seconds is not None and own.max_seconds is not None and own.min_seconds >= own.max_seconds:
            yield Problem(
                "min_seconds", f"is {own.min_seconds:g}, max_seconds {own.max_seconds:g}", "Sounds lie between"
            )
        yield from file_problems(own, may_be_folder=True)
        for split in own.named_files:
            place = Path(str(getattr(own, split)))
            if place.is_file() and place.suffix not in _FORMS:
                rule = f"Lists of sounds end with {', '.join(_FORMS)}"
                yield Problem(split, f"is {str(place)!r}", rule, "Write it in one of these forms")

    def guess(self, data: Mapping[str, str]) -> Guess | None:
        """See Kind: a column with a known name that leads to sounds, one of the known names of texts, and one of those
        of languages where every row has one."""
        place = Path(data["train"]).expanduser()
        if not place.exists() or (place.is_file() and place.suffix not in _FORMS):
            return None
        found = _columns(place)
        if found is None:
            return None
        audio, text, languages = found
        why = f"{place} is read as speech: {audio!r} leads to sound files, {text!r} holds what is said"
        return Guess({"kind": self.name, **data, "audio": audio, "text": text}, why, languages=languages)

    def writer(self, source: Source, folder: Path) -> Writer:
        """See Kind: the path of the sound file, and the answer. A sound that its row holds is written to a file, byte
        for byte."""
        from distill_engine.data.audio.clips import Place
        from distill_engine.data.audio.lists import SOUND_FILES, sound_file

        listed, files, named = _listed(_own(source), "train"), set[str](), _own(source).language is not None

        def row(_entries: Sequence[str], answer: str, note: str) -> Mapping[str, object]:
            place = Place.of(note)
            file = sound_file(listed, place.at, folder)
            if file.parent == folder:
                files.add(file.name)
            path = f"{folder.name}/{file.name}" if file.parent == folder else str(file)
            return {"audio": path, "text": answer, **({"language": place.language or None} if named else {})}

        return Writer(row, files, SOUND_FILES)

    def entry(self, source: Source) -> Mapping[str, object]:
        """See Kind."""
        kept = {"target_language", "leading_space", "read_all", "cache_features"}
        rows = {} if _own(source).language is None else {"language": "language"}
        return {"kind": self.name, **_own(source).model_dump(include=kept, exclude_defaults=True), **rows}

    def has(self, source: Source, split: Split) -> bool:
        """See Kind: of a dataset by name, the splits that it has."""
        return _own(source).has(split)

    def languages(self, source: Source) -> tuple[str | None, str | None]:
        """See Kind: sound needs no word of its language."""
        return None, _own(source).target_language

    def language_column(self, source: Source) -> str | None:
        """See Kind."""
        return _own(source).language

    def facts(self, source: Source, split: Split) -> Mapping[str, object]:
        """See Kind: where features are kept decides nothing, nor what stands before texts; one list in two folders
        leads to other sounds."""
        own, beside = _own(source), ("cache_features", "target_language")
        facts = {key: value for key, value in super().facts(source, split).items() if key not in beside}
        file = None if own.file(split) is None else Path(str(own.file(split))).expanduser().resolve()
        return facts | {"folder": None if file is None else str(file if file.is_dir() else file.parent)}

    def stores_features(self, source: Source) -> bool:
        """See Kind."""
        return _own(source).cache_features

    def rows(self, source: Source, split: Split) -> int | None:
        """See Kind: the rows of a list, filters or not."""
        from distill_engine.data.errors import DataError

        own = _own(source)
        if own.dataset is not None:
            return None
        if own.file(split) is None:
            return 0
        try:
            count = _listed(own, split).count()
        except (DataError, OSError):  # whoever reads it will say what is wrong
            return None
        return min(count, own.limit(split) or count)

    def files(self, source: Source, split: Split, root: str | None) -> list[Path]:
        """See Kind: the lists. One whose sounds have changed is not read again: a run refuses them (SpeechDataset)."""
        return _listed(_own(source), split).files

    def sounds(self, source: Source, split: Split) -> Sounds:
        """See Kind."""
        return _listed(_own(source), split)

    def read(self, source: Source, split: Split, reading: Reading) -> Iterator[Episode]:
        """See Kind. Rows that the filters leave out do not count among the first N examples."""
        from distill_engine.data.audio.reading import read_examples

        return read_examples(_own(source), _listed(_own(source), split), split, reading)


def _listed(source: SpeechSource, split: Split) -> Listed:
    from distill_engine.data.audio.lists import MANIFESTS, Manifest, Rows

    file = source.file(split)
    if source.dataset is None and Path(str(file)).suffix in MANIFESTS:
        return Manifest(str(file), split)
    return Rows(file, source.dataset, source.config, source.revision, source.audio, split)


def _columns(place: Path) -> tuple[str, str, tuple[str, set[str]] | None] | None:
    """The columns of sounds, texts and languages, by their names and by what the first rows hold."""
    from distill_engine.data.formats.tables import open_table

    table = open_table(str(place), "train")
    texts = [name for name in _TEXT if name in table.columns]
    rows = [row for _, row in islice(table.rows, _GUESS_ROWS) if isinstance(row, Mapping)]
    for name in _AUDIO:
        values = [row.get(name) for row in rows]
        if name in table.columns and texts and values and all(_is_sound(value, place) for value in values):
            return name, texts[0], _languages(rows)
    return None


def _languages(rows: Sequence[Mapping[str, object]]) -> tuple[str, set[str]] | None:
    for name in _LANGUAGE:
        said = [value for row in rows if isinstance(value := row.get(name), str) and value]
        if len(said) == len(rows):
            return name, set(said)
    return None


def _is_sound(value: object, place: Path) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or isinstance(value.get("path"), str)
    endings = (".wav", ".flac", ".ogg", ".mp3")
    return isinstance(value, str) and value.lower().endswith(endings) and place is not None


def _own(source: Source) -> SpeechSource:
    assert isinstance(source, SpeechSource), type(source)
    return source


KIND = Speech()
