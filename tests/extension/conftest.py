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


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.end_to_end)
