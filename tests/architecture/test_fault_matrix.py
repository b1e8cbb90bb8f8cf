"""docs/faults.md is complete: every fault has its row, and every test named there is in the tree."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = 82
ROW = re.compile(r"^\| (F\d+) \|(.*)\|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
UNTESTABLE = "not shown:"  # and one sentence why


def rows() -> dict[str, list[str]]:
    """Fault -> its cells: what it is, what happens, what shows it."""
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in ROW.findall(text)}


@cache
def named_in(file: str) -> frozenset[str]:
    """Names of the test functions of a file; none if there is no such file."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def objections(cells: list[str]) -> list[str]:
    """What is wrong with a row; nothing if it says what happens and what shows it."""
    if len(cells) != 3 or not all(cells):
        return ["has an empty cell, or more than three"]
    named = TEST.findall(cells[2])
    if not named and not re.fullmatch(rf"{UNTESTABLE} \S.+\.", cells[2]):
        return ["names no test and does not say why none is possible"]
    return [f"names {file}::{test}, which does not exist" for file, test in named if test not in named_in(file)]


def test_every_fault_has_its_row_in_order():
    numbers = [int(name[1:]) for name in rows()]
    assert numbers == list(range(1, FAULTS + 1))


def test_every_row_has_a_test_that_exists():
    found = [f"{name} {reason}" for name, cells in rows().items() for reason in objections(cells)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["a", "b", "D"], "names no test"),
        (["a", "", "`tests/architecture/test_fault_matrix.py::test_gaps_are_seen`"], "empty cell"),
        (["a", "b", "`tests/architecture/test_fault_matrix.py::test_nothing`"], "does not exist"),
        (["a", "b", "`tests/nowhere.py::test_nothing`"], "does not exist"),
        (["a", "b", "not shown:"], "names no test"),
        (["a", "b", "`tests/architecture/test_fault_matrix.py::test_gaps_are_seen`"], ""),
        (["a", "b", "not shown: it takes two nodes."], ""),
    ],
)
def test_gaps_are_seen(cells, said):
    found = objections(cells)
    assert bool(found) == bool(said) and said in "".join(found)
