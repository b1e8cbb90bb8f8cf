"""A kind of data from outside the package: checked, shown, trained on by two ranks, resumed, evaluated."""

import json
from pathlib import Path

HERE = Path(__file__).parent
BY_FILE = ("--plugin", HERE / "toy_kind.py")
ENTRY_POINTS = "[distill_engine.kinds]\nreversal = toy_kind:REVERSAL\n"


def recipe_of(base_recipe, write_recipe, **source) -> Path:
    made = base_recipe()
    made["data"]["tasks"] = [{"kind": "reversal", "words": ["soup", "dog", "rain"], "valid_examples": 6, **source}]
    made["validation"] |= {"every_steps": 2, "samples": 0}
    return write_recipe(made)


def test_a_plugins_kind_is_checked_shown_trained_on_resumed_and_evaluated(
    program, base_recipe, write_recipe, fp32, tmp_path, distill
):
    recipe = recipe_of(base_recipe, write_recipe)
    checked = distill(program, *BY_FILE, "check", "--recipe", recipe)
    assert checked.returncode == 0 and "reversal" in checked.stdout, checked.stderr
    shown = distill(program, *BY_FILE, "data", "show", "--recipe", recipe, "--examples", "1")
    assert "words (" in shown.stdout and "backwards (" in shown.stdout and "dog soup" in shown.stdout, shown.stderr
    folder = tmp_path / "run"
    start = ("--recipe", recipe, "--ds_config", fp32, "--run-dir", folder, *BY_FILE)
    program.run(*start, "--set", "stop.max_steps=2", ranks=2).well()
    program.run(*start, "--set", "stop.max_steps=3", ranks=2).well()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert max(record["step"] for record in lines if record["kind"] == "train") == 3
    done = distill(program, *BY_FILE, "evaluate", folder, "--json", tmp_path / "rows.json")
    assert done.returncode == 0 and json.loads((tmp_path / "rows.json").read_text()), done.stderr


def test_its_keys_and_rules_are_the_recipes(program, base_recipe, write_recipe, distill):
    wrong = recipe_of(base_recipe, write_recipe, rows=0)
    done = distill(program, *BY_FILE, "check", "--recipe", wrong)
    assert done.returncode == 78 and "data.tasks.0.rows is 0. There is at least one." in done.stderr
    wrong = recipe_of(base_recipe, write_recipe, row=3)
    done = distill(program, *BY_FILE, "check", "--recipe", wrong)
    assert done.returncode == 78 and "Did you mean rows?" in done.stderr
    done = distill(program, "check", "--recipe", wrong)
    assert done.returncode == 78 and "data.tasks.0.kind is 'reversal'" in done.stderr


def test_an_installed_package_needs_no_flag(program, distill, tmp_path):
    metadata = tmp_path / "toy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    done = distill(program, "list", "kinds", "--markdown", env={"PYTHONPATH": f"{tmp_path}:{HERE}"})
    assert "| `reversal` | tokens | first | words said backwards |" in done.stdout, done.stderr
