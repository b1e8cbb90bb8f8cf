"""One mistake at a time, and what the program has to say about it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from distill_engine import run as run_module
from distill_engine.cluster.exit_codes import BAD_INPUT


class Case:
    """One mistake in the making: a sound recipe, files of its own, and how the program is called."""

    def __init__(self, recipe: dict, folder: Path, teachers: dict[str, Path]) -> None:
        self.recipe, self.folder, self._teachers = recipe, folder, teachers
        self.text: str | None = None  # the recipe's YAML, where it is not just the recipe
        self.arguments: list[str] = []
        self.run_dir = folder / "run"

    def set(self, path: str, value) -> None:
        *sections, key = path.split(".")
        place = self.recipe
        for section in sections:
            place = place[int(section)] if section.isdecimal() else place.setdefault(section, {})
        place[int(key) if key.isdecimal() else key] = value

    def file(self, name: str, content: str) -> str:
        (self.folder / name).write_text(content)
        return str(self.folder / name)

    def own_teacher(self, family: str = "blenderbot") -> Path:
        """A copy that may be damaged."""
        copy = self.folder / "teacher"
        shutil.copytree(self._teachers[family], copy)
        self.set("teacher.path", str(copy))
        return copy

    def change_config(self, **values) -> None:
        file = self.own_teacher() / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    def ds_config(self, content: dict | str) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        self.arguments += ["--ds_config", self.file("ds.json", text)]

    def drop_tensor(self, name: str) -> None:
        file = self.own_teacher() / "model.safetensors"
        tensors = load_file(file)
        del tensors[name]
        save_file(tensors, file, metadata={"format": "pt"})

    def lines(self, content: str, *, kind: str = "parlai_text") -> None:
        self.set("data.datasets.0.name", kind)
        self.set("data.datasets.0.train", self.file("own.txt", content))


@pytest.fixture
def case(base_recipe, teachers, tmp_path) -> Case:
    return Case(base_recipe(), tmp_path, teachers)


@pytest.fixture
def call(case, write_recipe, fp32, monkeypatch, capfd) -> Callable[[], tuple[int, str]]:
    """Run the case in this process: exit code and what was written to stderr."""
    for name in [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run() -> tuple[int, str]:
        recipe = write_recipe(case.recipe)
        if case.text is not None:
            recipe.write_text(case.text)
        arguments = ["--recipe", recipe, "--run-dir", case.run_dir, "--ds_config", fp32, *case.arguments]
        capfd.readouterr()
        try:
            code = run_module.main([str(word) for word in arguments])
        except SystemExit as exited:  # argparse
            code = exited.code
        return code, capfd.readouterr().err

    return run


def complaints(code: int, err: str, says: list[str], expected: int = BAD_INPUT) -> None:
    """Refused, mostly for good, in words, with everything that must be said."""
    assert code == expected, f"exit code {code}\n{err}"
    assert "Traceback" not in err, err
    missing = [part for part in says if part not in err]
    assert not missing, f"not said: {missing}\n{err}"


@pytest.fixture(name="complaints")
def _complaints() -> Callable[..., None]:
    return complaints


@pytest.fixture
def refused(case, call) -> Callable[..., None]:
    """Make a mistake and check that it is refused before anything is trained."""

    def check(make: Callable[[Case], object], says: list[str]) -> None:
        make(case)
        complaints(*call(), says)
        assert not list(case.run_dir.glob("checkpoints/step-*"))

    return check
