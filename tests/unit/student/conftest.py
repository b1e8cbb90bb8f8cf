"""Teacher folders as they are found in the wild."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill_engine.models.bart_family import FAMILIES
from distill_engine.student.build import StudentSizes, TeacherLayers, build_student, student_config
from distill_engine.student.weights import WeightFiles
from distill_engine.values import Stack

TIED = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """What the folder's only safetensors file holds."""
    return load_file(folder / "model.safetensors")


def as_shards(folder: Path, place) -> dict[str, str]:
    """Split the folder's safetensors into the files that `place(name)` says; writes the index, returns its map."""
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    where = {name: place(name) for name in tensors}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def as_pickle(folder: Path, *, old_format: bool = False, rename=lambda name: name) -> None:
    """Turn the folder's safetensors into pytorch_model.bin."""
    tensors = {rename(name): tensor for name, tensor in tensors_of(folder).items()}
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old_format)


@pytest.fixture
def folders(tmp_path, tiny):
    """Makes teacher folders and students from them: teacher 2 + 4 layers, student 1 + 2."""

    def teacher(family: str, **config) -> Path:
        folder = tmp_path / f"teacher-{len(list(tmp_path.iterdir()))}"
        tiny.model(family, **({"decoder_layers": 4} | config)).save_pretrained(folder)
        return folder

    def student(family: str, folder: Path | WeightFiles, maps=((1,), (0, 2)), norms=True, seed=0, **sizes):
        files = folder if isinstance(folder, WeightFiles) else WeightFiles(folder)
        own = StudentSizes(**({"encoder_layers": len(maps[0]), "decoder_layers": len(maps[1])} | sizes))
        config = student_config(type(tiny.config(family)).from_pretrained(files.folder), own)
        by_stack = dict(zip((Stack.ENCODER, Stack.DECODER), maps, strict=True))
        return build_student(FAMILIES[family], config, TeacherLayers(files, by_stack, norms), seed)

    return SimpleNamespace(
        teacher=teacher, student=student, tensors=tensors_of, shards=as_shards, pickle=as_pickle, TIED=TIED
    )
