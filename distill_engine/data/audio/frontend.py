"""From sound to what an encoder reads: the feature extractor that lies in a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_engine.cluster.files import digest_of
from distill_engine.data.audio.sound import Sound, at_rate
from distill_engine.data.errors import DataError, shown
from distill_engine.data.tokens.layout import Window

FILE = "preprocessor_config.json"


class Frontend:
    """Log-mel features of a window of sound: shorter sounds are filled up with silence, longer ones refused."""

    def __init__(self, extractor: Any, folder: str) -> None:
        self._extractor = extractor
        self.folder = folder
        self.rate = int(extractor.sampling_rate)
        self.channels = int(extractor.feature_size)
        self.frames = int(extractor.nb_max_frames)

    @property
    def seconds(self) -> float:
        """Of a window."""
        return float(self._extractor.n_samples) / self.rate

    @property
    def identity(self) -> str:
        """Digest of the options that decide what is computed."""
        return digest_of(json.loads(self._extractor.to_json_string()))

    def features(self, sound: Sound) -> NDArray[np.float32]:
        """[C, F] of a sound that is no longer than a window, give or take what resampling adds."""
        assert sound.seconds <= self.seconds + 0.01, (sound.seconds, self.seconds)
        samples = at_rate(sound, self.rate)
        made = self._extractor(samples, sampling_rate=self.rate, return_tensors="np")["input_features"][0]
        return np.ascontiguousarray(made, np.float32)

    def problem(self, window: Window) -> str:
        """Why a model that reads such windows cannot read these; empty where it can."""
        own, wanted = (self.channels, self.frames), (window.channels, window.frames)
        if own == wanted:
            return ""
        return (
            f"{self.folder}/{FILE} makes {own[1]} frames of {own[0]} features, the model reads {wanted[1]} frames of "
            f"{wanted[0]}"
        )


def load_frontend(folder: Path) -> Frontend:
    """The one of a model's folder, read without network access. Raises DataError where there is none for windows."""
    from transformers import AutoFeatureExtractor

    if not (folder / FILE).is_file():
        raise DataError(
            f"{folder} has no {FILE}, which says how sound becomes the features that the model reads. Copy it from the "
            "model that the teacher was made from."
        )
    try:
        extractor = AutoFeatureExtractor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken file makes transformers raise nearly anything
        raise DataError(
            f"{folder / FILE} makes no feature extractor ({type(error).__name__}: {shown(str(error))}). Copy it again."
        ) from error
    if not all(hasattr(extractor, name) for name in ("nb_max_frames", "n_samples", "feature_size", "sampling_rate")):
        raise DataError(
            f"{folder / FILE} is a {type(extractor).__name__}, which makes no windows of features. Encoders that read "
            "windows of a fixed length can be distilled."
        )
    return Frontend(extractor, str(folder))
