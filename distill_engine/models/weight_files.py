"""Single tensors of a checkpoint folder, straight from disk, out of the files that transformers itself would take.

The student is built from the teacher's files before any engine exists: nothing is gathered from ZeRO-3 shards and
no second full copy of the teacher is ever in memory.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_INDEX = ".index.json"
# In the order in which from_pretrained looks for them: a whole file before an index, safetensors before pickles.
_ENTRIES = ("model.safetensors", f"model.safetensors{_INDEX}", "pytorch_model.bin", f"pytorch_model.bin{_INDEX}")
# Files that make from_pretrained load something else than a model's own weights, on some installations or on all.
_OTHERS = {
    re.compile(r"adapter_config\.json"): "an adapter (merge it into the model and save that)",
    re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors"): "a distributed checkpoint (save the model whole)",
}


class WeightsError(ValueError):
    """A checkpoint folder does not hold what is needed."""


class WeightFiles:
    """Lazy view of the weights in a Hugging Face folder, by the names they are stored under.

    A pickled file is opened once and kept while this object lives. Its tensors are mapped from the disk, except in
    the format from before torch 1.6, which can only be read as a whole.
    """

    def __init__(self, folder: Path, named: str | None = None) -> None:
        """Opens every file: its header tells whether it is complete. `named`: the file that config.json names
        (`transformers_weights`), if it names one.

        Raises WeightsError for files that are missing or damaged, or contradict each other.
        """
        self.folder = folder
        self._pickled: dict[Path, Mapping[str, Tensor]] = {}
        entry = _entry(folder, named)
        files, listed = ([entry], {}) if not entry.name.endswith(_INDEX) else _listed(entry, folder)
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            self._add(file)
        lost = sorted(name for name in listed if name not in self._files)
        if lost:
            raise WeightsError(
                f"{folder / listed[lost[0]]} does not hold {lost[0]!r}, although {entry.name} beside it says so. "
                "Download the folder again."
            )

    def _add(self, file: Path) -> None:
        for name, shape in self._shapes_in(file).items():
            if name in self._files:
                raise WeightsError(
                    f"{self.folder}: {self._files[name].name} and {file.name} both hold {name!r}, and which of them "
                    "counts cannot be told. Save or download the model again."
                )
            self._files[name], self.shapes[name] = file, shape

    def _shapes_in(self, file: Path) -> dict[str, tuple[int, ...]]:
        if file.suffix == ".safetensors":
            with _open_safetensors(file) as handle:
                return {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
        return {name: tuple(tensor.shape) for name, tensor in self._unpickled(file).items()}

    def _unpickled(self, file: Path) -> Mapping[str, Tensor]:
        if file not in self._pickled:
            self._pickled[file] = _unpickle(file)
        return self._pickled[file]

    def by_file(self) -> dict[Path, list[str]]:
        """Stored names, by the file that holds them."""
        found: dict[Path, list[str]] = {}
        for stored, file in self._files.items():
            found.setdefault(file, []).append(stored)
        return found

    def read(self, stored: str) -> Tensor:
        """One tensor, in the dtype it is stored in. Raises WeightsError if it is not there or unreadable."""
        file = self._files.get(stored)
        if file is None:
            raise WeightsError(f"{self.folder}: no tensor named {stored!r} among its {len(self._files)} tensors.")
        if file.suffix != ".safetensors":
            return self._unpickled(file)[stored]
        with _open_safetensors(file) as handle:
            tensor: Tensor = handle.get_tensor(stored)
            return tensor


def _entry(folder: Path, named: str | None) -> Path:
    """The file that from_pretrained would begin with."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        for pattern, what in _OTHERS.items():
            if pattern.fullmatch(path.name):
                raise WeightsError(f"{folder} holds {path.name}: {what}. It is not a plain model.")
    if named is not None:
        outside = Path(named).is_absolute() or ".." in Path(named).parts
        if outside or not named.endswith((".safetensors", f".safetensors{_INDEX}")) or not (folder / named).is_file():
            raise WeightsError(
                f"{folder}/config.json names {named!r} as its weights (transformers_weights), which is no safetensors "
                "file or index in that folder. Correct or remove the key."
            )
        return folder / named
    found = [folder / name for name in _ENTRIES if (folder / name).is_file()]
    if not found:
        raise WeightsError(
            f"{folder} holds no model.safetensors or pytorch_model.bin (nor an index of one). "
            "Give a folder written by save_pretrained."
        )
    return found[0]


def _listed(index: Path, folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that an index names, in the order of their names, and in which of them it says each tensor lies."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = dict(content["weight_map"])
        content["metadata"]  # transformers insists on it
        files = [folder / name for name in sorted(set(names.values()))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{index} is no index of weight files ({type(error).__name__}: {error}). Download the folder again."
        ) from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(f"{folder}: {index.name} names {', '.join(missing)}, which is not there.")
    return files, names


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} cannot be read as safetensors: {error}. It may be incomplete: copy or download it again."
        ) from error


def _unpickle(file: Path) -> Mapping[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise WeightsError(
            f"{file} cannot be read as weights ({type(error).__name__}: {error}). It may be incomplete: copy or "
            "download it again."
        ) from error
    held: Mapping[Any, Any] = content if isinstance(content, Mapping) else {type(content).__name__: content}
    others = [name for name, value in held.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"{file} is no file of weights: {others[0]!r} in it is no tensor. Save the model with save_pretrained."
        )
    return held
