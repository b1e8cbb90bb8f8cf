"""Teacher folders as they are found in the wild: how embeddings are tied, and in which files the tensors lie.

For tests of every room, and for worker processes, which import it by its name.
"""

import json
from collections.abc import Callable
from pathlib import Path

import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SHARED = "model.shared.weight"
ENCODER, DECODER = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
HEAD, BIAS = "lm_head.weight", "final_logits_bias"
TABLES = (SHARED, ENCODER, DECODER, HEAD)
TIED = (ENCODER, DECODER, HEAD)
WHOLE, PICKLE = "model.safetensors", "pytorch_model.bin"

Tensors = dict[str, Tensor]


def tensors_of(folder: Path) -> Tensors:
    """What the folder's only safetensors file holds."""
    return load_file(folder / WHOLE)


def put(folder: Path, tensors: Tensors, file: str = WHOLE) -> None:
    """Write tensors as one file, safetensors or pickle by its name."""
    alone = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    if file.endswith(".bin"):
        torch.save(alone, folder / file)
    else:
        save_file(alone, folder / file, metadata={"format": "pt"})


def change_config(folder: Path, **values: object) -> None:
    """Set keys of config.json; None removes one."""
    file = folder / "config.json"
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def as_shards(folder: Path, place: Callable[[str], str], kind: str = WHOLE) -> dict[str, str]:
    """Split the folder's safetensors into the files that `place(name)` says; writes the index, returns its map."""
    tensors = tensors_of(folder)
    (folder / WHOLE).unlink()
    where = {name: place(name) for name in tensors}
    for file in set(where.values()):
        put(folder, {name: tensors[name] for name in tensors if where[name] == file}, file)
    (folder / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def as_pickle(folder: Path, *, old_format: bool = False, rename: Callable[[str], str] = lambda name: name) -> None:
    """Turn the folder's safetensors into pytorch_model.bin."""
    tensors = {rename(name): tensor for name, tensor in tensors_of(folder).items()}
    (folder / WHOLE).unlink()
    torch.save(tensors, folder / PICKLE, _use_new_zipfile_serialization=not old_format)


def _without_prefix(folder: Path) -> None:
    put(folder, {name.removeprefix("model."): tensor for name, tensor in tensors_of(folder).items()})


def _half_each(name: str) -> str:
    return f"part-{'decoder' in name:d}.safetensors"


def _others(folder: Path) -> Tensors:
    """The same tensors with other values: what a loader that takes the wrong file would show."""
    return {name: tensor + 1 for name, tensor in tensors_of(folder).items()}


def _beside_old_shards(folder: Path) -> None:
    right, wrong = tensors_of(folder), _others(folder)
    put(folder, wrong)
    as_shards(folder, _half_each)
    put(folder, right)


def _beside_a_stale_index(folder: Path) -> None:
    where = dict.fromkeys(tensors_of(folder), "model-00001-of-00009.safetensors")
    (folder / f"{WHOLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _shards_beside_a_pickle(folder: Path) -> None:
    put(folder, _others(folder), PICKLE)
    as_shards(folder, _half_each)


def _pickle_beside_a_variant(folder: Path) -> None:
    put(folder, _others(folder), "model.fp16.safetensors")
    as_pickle(folder)


def _named_by_the_configuration(folder: Path) -> None:
    right = tensors_of(folder)
    put(folder, _others(folder))
    put(folder, right, "own.safetensors")
    change_config(folder, transformers_weights="own.safetensors")


def _pickle_with_one_storage(folder: Path) -> None:
    """As transformers wrote it for years: tied tensors under all their names, stored once."""
    tensors = tensors_of(folder)
    if json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True):
        shared = next(tensors[name] for name in TABLES if name in tensors)
        tensors |= dict.fromkeys(TABLES, shared)
    torch.save(tensors, folder / PICKLE)
    (folder / WHOLE).unlink()


# How a folder that save_pretrained wrote is laid out anew.
FILES: dict[str, Callable[[Path], object]] = {
    "one file": lambda folder: None,
    "shards": lambda folder: as_shards(folder, _half_each),
    "pickle": as_pickle,
    "pickle with one storage": _pickle_with_one_storage,
    "old pickle": lambda folder: as_pickle(folder, old_format=True),
    "pickled shards": lambda folder: as_shards(folder, lambda name: _half_each(name)[:-11] + "bin", PICKLE),
    "without prefix": _without_prefix,
    "one file beside old shards": _beside_old_shards,
    "one file beside a stale index": _beside_a_stale_index,
    "one file beside a pickle": lambda folder: put(folder, _others(folder), PICKLE),
    "shards beside a pickle": _shards_beside_a_pickle,
    "pickle beside a variant": _pickle_beside_a_variant,
    "named by the configuration": _named_by_the_configuration,
}


def _store(*names: str, copies: tuple[str, ...] = ()) -> Callable[[Path], None]:
    """Of the one table of a tied model, keep these names only (with `copies`: each a tensor of its own)."""

    def change(folder: Path) -> None:
        tensors = tensors_of(folder)
        shared = tensors.pop(SHARED)
        put(folder, tensors | dict.fromkeys((*names, *copies), shared))

    return change


def _alike(*names: str) -> Callable[[Path], None]:
    """Let these tables of an untied model have the values of the shared one."""

    def change(folder: Path) -> None:
        tensors = tensors_of(folder)
        put(folder, tensors | dict.fromkeys(names, tensors[SHARED]))

    return change


def _without_bias(folder: Path) -> None:
    put(folder, {name: tensor for name, tensor in tensors_of(folder).items() if name != BIAS})


# Name -> whether config.json ties, and what is changed of the folder that save_pretrained wrote.
TYINGS: dict[str, tuple[bool, Callable[[Path], object]]] = {
    "tied": (True, lambda folder: None),
    "tied, no key": (True, lambda folder: change_config(folder, tie_word_embeddings=None)),
    "tied, all stored": (True, _store(SHARED, copies=TIED)),
    "tied, only the head stored": (True, _store(HEAD)),
    "tied, only the decoder's stored": (True, _store(DECODER)),
    "tied, no bias": (True, _without_bias),
    "untied": (False, lambda folder: None),
    "untied, all alike": (False, _alike(*TIED)),
    "untied, only the head differs": (False, _alike(ENCODER, DECODER)),
    "untied, only the encoder's differs": (False, _alike(DECODER, HEAD)),
    "untied, no bias": (False, _without_bias),
}


def make(folder: Path, family: str, tying: str = "tied", files: str = "one file") -> Tensors:
    """A teacher folder; returns the value that every parameter and buffer of its model has to have."""
    tied, change = TYINGS[tying]
    tiny_models.save_teacher(folder, family, tie_word_embeddings=tied)
    change(folder)
    stored = tensors_of(folder)
    if tied:
        shared = next(stored[name] for name in TABLES if name in stored)
        stored |= dict.fromkeys(TABLES, shared)
    stored.setdefault(BIAS, torch.zeros(1, tiny_models.VOCABULARY))
    FILES[files](folder)
    return stored
