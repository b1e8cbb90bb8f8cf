"""Requirements of this project that the present Python does not meet, one a line: `python benchmarks/wheels.py`.

For an image without network: `pip download -d wheels -r` of these lines elsewhere, `pip install --no-index
--find-links wheels` there. Needs nothing but pip.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

CHECKS = ("pytest", "pytest-timeout", "triton")  # of the development tools, what tests/gpu needs


def requirements(pyproject: str) -> list[Requirement]:
    """Dependencies, and of the extra `dev` what the device check uses."""
    found = [Requirement(text) for text in _strings(pyproject, "dependencies")]
    tools = [Requirement(text) for text in _strings(pyproject, "dev")]
    return [*found, *(tool for tool in tools if tool.name in CHECKS)]


def _strings(pyproject: str, key: str) -> list[str]:
    """Those of a list, its comments left out: Python 3.10 cannot read TOML by itself."""
    block = re.search(rf"^{key} = \[\n(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)
    if block is None:
        raise SystemExit(f"pyproject.toml has no list {key}.")
    lines = (line.split(" #")[0] for line in block[1].splitlines() if not line.lstrip().startswith("#"))
    return [text for line in lines for text in re.findall(r'"([^"]+)"', line)]


def lacking(wanted: list[Requirement]) -> list[str]:
    """Those that are not installed, or in another version."""
    found = []
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate():
            continue
        try:
            met = one.specifier.contains(version(one.name), prereleases=True)
        except PackageNotFoundError:
            met = False
        if not met:
            found.append(f"{one.name}{one.specifier}")
    return found


if __name__ == "__main__":
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    sys.stdout.writelines(f"{line}\n" for line in lacking(requirements(text)))
