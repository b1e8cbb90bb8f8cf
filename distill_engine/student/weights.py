"""Single tensors of a checkpoint folder, straight from disk.

The student is built from the teacher's files before any engine exists: nothing is gathered from ZeRO-3 shards and
no second full copy of the teacher is ever in memory.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_TIED_EMBEDDINGS = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)


class WeightsError(ValueError):
    """A checkpoint folder does not hold what is needed."""


class WeightFiles:
    """Lazy view of the weights in a Hugging Face folder (safetensors, sharded or not, or pytorch_model.bin).

    A pickled file is opened once and kept while this object lives. Its tensors are mapped from the disk, except in
    the format from before torch 1.6, which can only be read as a whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pickled: dict[Path, dict[str, Tensor]] = {}
        self._files = self._locate()

    def _locate(self) -> dict[str, Path]:
        """Tensor name -> file that holds it."""
        for kind in ("model.safetensors", "pytorch_model.bin"):
            index = self.folder / f"{kind}.index.json"
            if index.is_file():
                names = _weight_map(index)
                missing = sorted({f for f in names.values() if not (self.folder / f).is_file()})
                if missing:
                    raise WeightsError(f"{self.folder}: {index.name} names {', '.join(missing)}, which is not there.")
                return {name: self.folder / file for name, file in names.items()}
            single = self.folder / kind
            if single.is_file():
                return dict.fromkeys(self._names_in(single), single)
        raise WeightsError(
            f"{self.folder} holds no model.safetensors or pytorch_model.bin (nor an index of one). "
            "Give a folder written by save_pretrained."
        )

    def _names_in(self, file: Path) -> list[str]:
        if file.suffix == ".safetensors":
            with _open_safetensors(file) as handle:
                return list(handle.keys())
        return list(self._unpickled(file))

    def _unpickled(self, file: Path) -> dict[str, Tensor]:
        if file not in self._pickled:
            self._pickled[file] = _unpickle(file)
        return self._pickled[file]

    def check_readable(self) -> None:
        """Open every safetensors file: its header tells whether it is complete. Raises WeightsError."""
        for file in sorted(set(self._files.values())):
            if file.suffix == ".safetensors":
                with _open_safetensors(file):
                    pass

    def resolve(self, name: str) -> str | None:
        """The stored name of a parameter: as it is, without the head model's prefix, or a tied twin of it."""
        candidates = _TIED_EMBEDDINGS if name in _TIED_EMBEDDINGS else (name,)
        for candidate in (name, *candidates):
            for stored in (candidate, candidate.removeprefix("model.")):
                if stored in self._files:
                    return stored
        return None

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype it is stored in. Raises WeightsError if it is not there or unreadable."""
        stored = self.resolve(name)
        if stored is None:
            raise WeightsError(f"{self.folder}: no tensor named {name!r} among its {len(self._files)} tensors.")
        file = self._files[stored]
        try:
            if file.suffix == ".safetensors":
                with _open_safetensors(file) as handle:
                    return handle.get_tensor(stored)
            return self._unpickled(file)[stored]
        except (SafetensorError, KeyError) as error:
            raise WeightsError(
                f"{file} does not hold {stored!r}, although the index beside it says so. Download the folder again."
            ) from error


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{index} is no index of weight files ({type(error).__name__}: {error}). Download the folder again."
        ) from error


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors: {error}. The download may be incomplete.") from error


def _unpickle(file: Path) -> dict[str, Tensor]:
    try:
        return torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise WeightsError(
            f"{file} cannot be read as weights ({type(error).__name__}: {error}). The download may be incomplete."
        ) from error
