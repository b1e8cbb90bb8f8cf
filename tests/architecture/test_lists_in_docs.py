"""The tables of what can be chosen by name are those that `distill list SEAM --markdown` prints, and CONTRIBUTING says
of every seam where its parts lie."""

import re

import pytest
from typer.testing import CliRunner

from distill_engine.cli import app
from distill_engine.registry import BUILT_IN


@pytest.mark.parametrize(
    "seam, page",
    [
        ("terms", "losses.md"),
        ("divergences", "losses.md"),
        ("metrics", "metrics.md"),
        ("families", "families.md"),
        ("kinds", "data.md"),
        ("teachers", "teachers.md"),
        ("rollouts", "teachers.md"),
        ("exports", "exports.md"),
    ],
)
def test_the_table_in_the_docs_is_the_registrys(root, seam, page):
    printed = CliRunner().invoke(app, ["list", seam, "--markdown"])
    assert printed.exit_code == 0
    assert printed.stdout in (root / "docs" / page).read_text(encoding="utf-8")


def test_every_seam_has_its_row_in_contributing(root):
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [re.findall(r"`([^`]+)`", row) for row in text.splitlines() if row.count("|") == 7 and "`" in row]
    assert {seam for seam, *_ in rows} == set(BUILT_IN) and len(rows) == len(BUILT_IN) + 1  # two kinds of metrics
    for seam, *places in rows:
        room, _, page, toy = places
        assert all((root / place).exists() for place in places), places
        modules = {entry.partition(":")[0].replace(".", "/") for entry in BUILT_IN[seam].values()}
        assert any(module.startswith(room) for module in modules), (room, modules)
        assert f"distill list {seam}" in text + (root / page).read_text(encoding="utf-8")
        driver = "".join(test.read_text(encoding="utf-8") for test in (root / "tests" / "extension").glob("test_*.py"))
        assert f'register("{seam}"' in (root / toy).read_text(encoding="utf-8")
        assert toy.rpartition("/")[2].removesuffix(".py") in driver
