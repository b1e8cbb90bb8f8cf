"""ParlAI models as files: the real one of the fixtures, and changed copies of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from distill_engine.interop.parlai.importer import import_parlai
from distill_engine.interop.parlai.source import SourceFiles

FIXTURE = Path(__file__).parents[3] / "fixtures" / "taskdata" / "tiny_parlai" / "blender"
PARTS = ("model", "model.opt", "model.dict", "model.dict-vocab.json", "model.dict-merges.txt")


@pytest.fixture(scope="session")
def blender() -> Path:
    """The folder of a model that ParlAI trained and saved."""
    return FIXTURE


@pytest.fixture(scope="session")
def imported(tmp_path_factory) -> Path:
    """That model as a Hugging Face folder; tests only read it."""
    folder = tmp_path_factory.mktemp("imported") / "hf"
    import_parlai(SourceFiles(FIXTURE / "model"), folder)
    return folder


@pytest.fixture
def changed(tmp_path):
    """Makes a copy of the model with other options, tensors or entries beside them; gives its model file."""

    def make(options=None, state=None, extra=None, name="copy") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for part in PARTS:
            shutil.copy(FIXTURE / part, folder / part)
        opt = json.loads((folder / "model.opt").read_text())
        (folder / "model.opt").write_text(json.dumps(opt | (options or {})))
        if state is not None or extra is not None:
            stored = torch.load(FIXTURE / "model", weights_only=True)["model"]
            torch.save({"model": state(dict(stored)) if state else stored, **(extra or {})}, folder / "model")
        return folder / "model"

    return make
