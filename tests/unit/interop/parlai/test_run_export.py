"""A run's student in ParlAI's format, with the options its recipe names."""

import json
import shutil

import pytest
import torch

from distill_engine.export.convert import export_student

RECIPE = """
name: small
student: {train_position_tables: false}
data:
  datasets: [{name: demo, weight: 2}]
  delimiter: "  "
  history_end_token: true
  context_tokens: 100
  label_tokens: 50
optimizer: {learning_rate: 1e-3}
"""


@pytest.fixture
def run(imported, tmp_path):
    """A run folder as training leaves it, as far as an export looks."""
    folder = tmp_path / "run"
    shutil.copytree(imported, folder / "exports" / "step-00000012")
    (folder / "best").symlink_to("exports/step-00000012", target_is_directory=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def export(source, target):
    return export_student(source, target, "parlai", None, lambda *_: {})


def test_the_best_student_is_written_with_the_recipes_options(run, blender, tmp_path):
    step = export(run, tmp_path / "parlai")
    told = json.loads((tmp_path / "parlai" / "model.opt").read_text())
    assert step == 12 and (told["task"], told["multitask_weights"]) == ("demo", [2.0])
    assert (told["delimiter"], told["history_add_global_end_token"]) == ("  ", "end")
    assert (told["truncate"], told["text_truncate"], told["label_truncate"]) == (100, 100, 50)
    before, after = (
        torch.load(f, weights_only=True)["model"] for f in (blender / "model", tmp_path / "parlai" / "model")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parlai", "run"]


def test_a_target_that_exists_is_refused_before_any_work(run, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        export(run, run)
    with pytest.raises(ValueError, match="no exported student"):
        export(tmp_path, tmp_path / "parlai")


def test_any_model_folder_will_do(imported, blender, tmp_path):
    assert export(imported, tmp_path / "parlai") is None
    before, after = (torch.load(f, weights_only=True)["model"] for f in (blender / "model", tmp_path / "parlai/model"))
    assert all(torch.equal(before[name], after[name]) for name in before)
