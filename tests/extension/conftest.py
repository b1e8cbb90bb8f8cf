"""Plugins run as a user runs them: with the program, data and teachers of the end-to-end tests."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("end_to_end_conftest", HERE.parent / "end_to_end" / "conftest.py")
assert _SPEC is not None and _SPEC.loader is not None
_END_TO_END = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_END_TO_END)
for _name in ("program", "teachers", "data", "base_recipe", "write_recipe", "fp32"):
    globals()[_name] = getattr(_END_TO_END, _name)


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.end_to_end)
