"""Plugins run as a user runs them: with the program, data and teachers of the end-to-end tests."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("end_to_end_conftest", HERE.parent / "end_to_end" / "conftest.py")
assert _SPEC is not None and _SPEC.loader is not None
_END_TO_END = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_END_TO_END)
for _name in ("program", "teachers", "data", "base_recipe", "write_recipe", "fp32"):
    globals()[_name] = getattr(_END_TO_END, _name)


@pytest.fixture(scope="session")
def distill() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Calls `distill` with arguments, in the program's environment."""

    def call(program, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return program.distill(*arguments, env=env)

    return call


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Callable[..., dict[str, str]]:
    """What a process sees of a package that brings these entry points (seam -> lines); its metadata is all of that."""

    def site(**seams: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("site")
        metadata = folder / "toy-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        groups = (f"[distill_engine.{seam}]\n{lines}\n" for seam, lines in seams.items())
        (metadata / "entry_points.txt").write_text("".join(groups))
        return {"PYTHONPATH": f"{folder}:{HERE}"}

    return site


@pytest.fixture(scope="session")
def by_name() -> dict[str, str]:
    """Where `--plugin MODULE` finds the toys by their names."""
    return {"PYTHONPATH": str(HERE)}


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.end_to_end)
