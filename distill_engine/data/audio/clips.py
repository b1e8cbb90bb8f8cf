"""A dataset whose inputs are sound: texts as tokens, and beside each where its sound is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.audio.frontend import Frontend
from distill_engine.data.audio.sound import At, Sound, SoundError, Sounds
from distill_engine.data.errors import DataError
from distill_engine.data.tokens.tokenised import Clip, Example, TokenisedDataset


@dataclass(frozen=True)
class Place:
    """Where a sound is, and what it was when the data was read.

    at       as its row has it: a path, or the number of the row that holds it
    samples  of each channel      rate  samples a second      where  its line or row
    digest   of its file; empty where no more than its header was read
    language of what is said, where the row names one
    """

    at: At
    samples: int
    rate: int
    where: str
    digest: str = ""
    language: str = ""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.samples / self.rate

    @property
    def note(self) -> str:
        """As the token cache keeps it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def of(cls, note: str) -> Place:
        """Of such a note."""
        return cls(**json.loads(note))


class Stored(Protocol):
    """Features that were computed before."""

    @property
    def size(self) -> int:
        """Bytes that they take on the disk."""

    def features(self, index: int) -> NDArray[np.float32]:
        """[C, F] of an example."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SpeechDataset(TokenisedDataset):
    """All examples of one dataset and split, whose contexts are windows of sound.

    source    names the data for people, with its file
    prompts   what the decoder reads before a text, by the language that its row names; else it is the layout's
    stored    features by example; None: they are computed whenever an example is asked for
    """

    source: str
    sounds: Sounds
    frontend: Frontend
    prompts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stored: Stored | None = None

    @classmethod
    def of(
        cls,
        texts: TokenisedDataset,
        source: str,
        sounds: Sounds,
        frontend: Frontend,
        prompts: Mapping[str, tuple[int, ...]],
    ) -> SpeechDataset:
        """Of texts with notes of their sounds."""
        held = {field.name: getattr(texts, field.name) for field in fields(TokenisedDataset)}
        return cls(**held, source=source, sounds=sounds, frontend=frontend, prompts=prompts)

    def place(self, index: int) -> Place:
        """Where an example's sound is."""
        assert self.notes is not None, "data of sounds has notes"
        return Place.of(self.notes[index])

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """[examples]: how long the sounds are."""
        return np.array([self.place(index).seconds for index in range(len(self))])

    def example(self, index: int) -> Example:
        """Example number `index`; its features are computed when they are asked for."""
        place = self.place(index)
        title = f"{place.at if isinstance(place.at, str) else place.where} ({place.seconds:.1f} s)"
        clip = Clip(title, place.seconds, partial(self._features, index))
        prompt = self.prompts[place.language] if place.language else self.layout.decoder_prefix
        return Example(np.empty(0, np.int32), self._label(index), clip, prompt)

    def sound(self, index: int) -> Sound:
        """An example's sound. Raises DataError where it is not what it was when the data was read."""
        place = self.place(index)
        try:
            sound = self.sounds.read(place.at)
        except SoundError as error:
            raise DataError(f"{self.source}, {place.where}: {error}. It could be read before. Restore it.") from error
        now, then = (f"{samples:,} samples at {rate} Hz" for samples, rate in (
            (len(sound.samples), sound.rate), (place.samples, place.rate)))  # fmt: skip
        if now != then or place.digest not in ("", sound.digest):
            then = then if now != then else f"as many of other content ({place.digest}, not {sound.digest})"
            raise DataError(
                f"{self.source}, {place.where}: {place.at} has {now}; it had {then} when the data was read. Sounds "
                "must not change while their list stays. Restore it, or change the list and start a new run folder."
            )
        return sound

    def _features(self, index: int) -> NDArray[np.float32]:
        return self.frontend.features(self.sound(index)) if self.stored is None else self.stored.features(index)

    def _lengths(self, bounds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self.layout.window is not None, "a family that hears has a window"
        _, labels = super()._lengths(bounds)
        return np.full(len(bounds), self.layout.window.positions), labels
