"""Sounds that tests make: sine tones, a list of them, and the feature extractor of a tiny model that hears a second.

Tests get this module by its name.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE, CHANNELS, SECONDS, HOP = 8000, 8, 1, 160
FRAMES = SECONDS * RATE // HOP
WORDS = {220: "low", 440: "middle", 880: "high"}  # what is said of tones, by their frequency in hertz


def tone(file: Path, hertz: float = 440, seconds: float = 0.5, rate: int = RATE, level: float = 0.3) -> Path:
    """A sine tone in a WAV or FLAC file."""
    times = np.arange(round(seconds * rate)) / rate
    soundfile.write(file, level * np.sin(2 * np.pi * hertz * times), rate)
    return file


def listed(folder: Path, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
    """A manifest in `folder`: JSON lines, CSV or TSV by its ending."""
    file = folder / name
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return file


def tones(folder: Path, count: int, name: str = "train.jsonl") -> Path:
    """A manifest of so many tones of different pitch and length, with a word for each pitch."""
    rows = []
    for number in range(count):
        hertz = list(WORDS)[number % len(WORDS)]
        file = tone(folder / f"{Path(name).stem}{number}.wav", hertz, 0.3 + 0.05 * (number % 7))
        rows.append({"audio": file.name, "text": f"{WORDS[hertz]} tone"})
    return listed(folder, name, rows)


def save_extractor(folder: Path, channels: int = CHANNELS, seconds: int = SECONDS) -> Path:
    """The feature extractor of a tiny model."""
    from transformers import WhisperFeatureExtractor

    WhisperFeatureExtractor(
        feature_size=channels, sampling_rate=RATE, chunk_length=seconds, hop_length=HOP, n_fft=400
    ).save_pretrained(folder)
    return folder
