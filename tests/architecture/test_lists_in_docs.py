"""The tables of what can be chosen by name are those that `distill list SEAM --markdown` prints."""

import pytest
from typer.testing import CliRunner

from distill_engine.cli import app


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
    ],
)
def test_the_table_in_the_docs_is_the_registrys(root, seam, page):
    printed = CliRunner().invoke(app, ["list", seam, "--markdown"])
    assert printed.exit_code == 0
    assert printed.stdout in (root / "docs" / page).read_text(encoding="utf-8")
