"""Names of seams: where they come from, their order, and what is said about those that are in no table."""

import sys

import pytest

from distill_engine import registry
from distill_engine.registry import BUILT_IN, RegistryError, load, load_plugins, names, register, rows

PLUGIN = """
from distill_engine.registry import register

class Toy:
    meaning = "a toy"

TOY = Toy()
register("divergences", "a_toy", "{module}:TOY")
"""


@pytest.fixture(autouse=True)
def forgotten_afterwards(monkeypatch):
    monkeypatch.setattr(registry, "_PLUGGED_IN", {seam: {} for seam in BUILT_IN})
    before = set(sys.modules)
    yield
    for name in [name for name in sys.modules if name not in before and name.startswith("plugin_")]:
        del sys.modules[name]


@pytest.mark.parametrize("seam", ["terms", "divergences"])
def test_everything_built_in_can_be_loaded_and_knows_its_meaning(seam):
    assert names(seam)[: len(BUILT_IN[seam])] == tuple(BUILT_IN[seam])
    assert all(meaning and "|" not in meaning for _, meaning in rows(seam))
    if seam == "terms":
        assert [load(seam, name).name for name in names(seam)] == list(names(seam))


def test_a_plugin_by_file_and_by_name(tmp_path, monkeypatch):
    (tmp_path / "plugin_one.py").write_text(PLUGIN.format(module="plugin_one"))
    load_plugins([str(tmp_path / "plugin_one.py")] * 2)  # twice is once
    assert names("divergences") == (*BUILT_IN["divergences"], "a_toy")
    assert load("divergences", "a_toy").meaning == "a toy"
    monkeypatch.setattr(registry, "_PLUGGED_IN", {seam: {} for seam in BUILT_IN})
    (tmp_path / "plugin_two.py").write_text(PLUGIN.format(module="plugin_two"))
    monkeypatch.chdir(tmp_path)  # a module beside the recipe
    load_plugins(["plugin_two"])
    assert ("a_toy", "a toy") in rows("divergences")


def test_entry_points_come_after_what_is_built_in(tmp_path, monkeypatch):
    folder = tmp_path / "toy-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[distill_engine.divergences]\nzebra = no_such_module:X\nforward_kl = another:X\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._installed.cache_clear()
    try:
        assert names("divergences") == (*BUILT_IN["divergences"], "zebra")
        assert load("divergences", "forward_kl").meaning.startswith("forward KL"), "nobody replaces what is built in"
        with pytest.raises(RegistryError, match="'zebra' is no_such_module:X, which cannot be imported: No module"):
            rows("divergences")
    finally:
        registry._installed.cache_clear()


@pytest.mark.parametrize(
    "act, said",
    [
        (lambda: names("term"), "'term' is no seam. There are: families, .* Did you mean terms?"),
        (lambda: load("terms", "taks"), "'taks' is none of the terms. There are: task, .* Did you mean task?"),
        (lambda: register("terms", "task", "other:TASK"), "'task' is distill_engine.losses.terms.task:TASK already"),
        (lambda: register("terms", "My Term", "a:B"), "'My Term' cannot be a name"),
        (lambda: register("terms", "mine", "no_object"), "A target is module:object"),
        (lambda: load_plugins(["nowhere.py"]), "--plugin nowhere.py: there is no such file"),
        (lambda: load_plugins(["no_such_plugin"]), "--plugin no_such_plugin cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_is_said(act, said):
    with pytest.raises(RegistryError, match=said):
        act()


def test_a_plugin_that_breaks_is_named(tmp_path):
    (tmp_path / "plugin_bad.py").write_text("1 / 0")
    with pytest.raises(RegistryError, match=r"plugin_bad.py cannot be imported: ZeroDivisionError"):
        load_plugins([str(tmp_path / "plugin_bad.py")])
    assert "plugin_bad" not in sys.modules
