"""Sound files: what their headers say, their samples as one channel, at another rate. Needs the extra `speech`."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.errors import DataError

# Telephones have 8,000 samples a second, studios 192,000; beyond this a header is broken or the file no recording.
RATES = (4_000, 384_000)
# Half a step of 16 bits: what is below it all the time was not recorded by anybody.
_SILENT = 0.5 / 2**15
At = str | int


class SoundError(ValueError):
    """A sound that cannot be used; the text says why and is put behind its place."""


@dataclass(frozen=True)
class Sound:
    """One channel of samples between -1 and 1, [N] float32, so many a second; `digest`: of the file they are from."""

    samples: NDArray[np.float32]
    rate: int
    digest: str = ""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    @property
    def level(self) -> float:
        """Its root mean square in decibels below full scale; minus infinity where it is silent."""
        power = float(np.mean(np.square(self.samples, dtype=np.float64))) if len(self.samples) else 0.0
        return 10 * float(np.log10(power)) if power > 0 else -float("inf")


class Sounds(Protocol):
    """The sounds of a split, by what its rows say of their place.

    identity  of all of them: which folder, file or dataset places are within
    """

    @property
    def identity(self) -> str: ...

    def read(self, at: At) -> Sound:
        """One of them. Raises SoundError; may be called by several threads."""

    def stamp(self, at: At) -> object:
        """What differs once the sound has been changed, as far as `identity` does not; without reading it."""


def missing_library() -> str:
    """What to install before sound can be read; empty where it is there."""
    for name in ("soundfile", "soxr"):
        try:
            import_module(name)
        except (ImportError, OSError) as error:  # OSError: soundfile finds no libsndfile
            return (
                f"Sound is read with the package {name}, which cannot be used here ({error}). Install it with "
                "`pip install 'distill-engine[speech]'`."
            )
    return ""


def require_libraries() -> None:
    """Raises DataError without the extra `speech`."""
    if reason := missing_library():
        raise DataError(reason)


def header(source: Path | bytes) -> tuple[int, int]:
    """Samples of each channel, and samples a second. Raises SoundError for what is no sound file."""
    import soundfile

    try:
        facts = soundfile.info(_opened(source))
    except (OSError, RuntimeError) as error:
        raise SoundError(_unreadable(source, error)) from error
    return int(facts.frames), int(facts.samplerate)


def ending(source: Path | bytes) -> str:
    """What the name of such a file ends with: `flac`, `wav`. Raises SoundError for what is no sound file."""
    import soundfile

    try:
        return str(soundfile.info(_opened(source)).format).lower()
    except (OSError, RuntimeError) as error:
        raise SoundError(_unreadable(source, error)) from error


def read_sound(source: Path | bytes) -> Sound:
    """A whole file, its channels averaged. Raises SoundError where it cannot be read or is empty."""
    import soundfile

    try:
        samples, rate = soundfile.read(_opened(source), dtype="float32", always_2d=True)
        held = source if isinstance(source, bytes) else source.read_bytes()
    except (OSError, RuntimeError) as error:
        raise SoundError(_unreadable(source, error)) from error
    return Sound(samples.mean(axis=1, dtype=np.float32), int(rate), hashlib.blake2b(held, digest_size=8).hexdigest())


def file_stamp(file: Path) -> tuple[int, int] | None:
    """Size and time of the last change; None where the file is not there."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def at_rate(sound: Sound, rate: int) -> NDArray[np.float32]:
    """Its samples at another rate."""
    if sound.rate == rate:
        return sound.samples
    import soxr

    resampled: Any = soxr.resample(sound.samples, sound.rate, rate)
    return np.asarray(resampled, np.float32)


def unusable(sound: Sound) -> str:
    """Why nothing can be learnt from a sound; empty where something can."""
    if not np.isfinite(sound.samples).all():
        return "holds samples that are no numbers"
    loudest = float(np.abs(sound.samples).max(initial=0.0))
    return "is silent: every sample is 0" if loudest < _SILENT else ""


def unusable_header(samples: int, rate: int) -> str:
    """The same by what a header says."""
    if samples == 0:
        return "is empty: it holds no sample"
    if not RATES[0] <= rate <= RATES[1]:
        return f"says that it has {rate:,} samples a second; {RATES[0]:,} to {RATES[1]:,} can be resampled"
    return ""


def _opened(source: Path | bytes) -> str | io.BytesIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not source.is_file():
        raise SoundError(f"there is no file {source}")
    return str(source)


def _unreadable(source: Path | bytes, error: Exception) -> str:
    name = "the sound in this row" if isinstance(source, bytes) else str(source)
    return f"{name} cannot be read as sound ({str(error).strip().splitlines()[-1]}); WAV and FLAC files can"
