"""A kind of data from outside the package: checked, shown, trained on by two ranks, resumed, evaluated; by file, by
entry point and by module."""

import json
from pathlib import Path

HERE = Path(__file__).parent
BY_FILE = ("--plugin", HERE / "toy_kind.py")


def recipe_of(base_recipe, write_recipe, **source) -> Path:
    made = base_recipe()
    made["data"]["tasks"] = [{"kind": "reversal", "words": ["soup", "dog", "rain"], "valid_examples": 6, **source}]
    made["validation"] |= {"every_steps": 2, "samples": 0}
    return write_recipe(made)


def test_a_plugins_kind_is_checked_shown_trained_on_resumed_and_evaluated(
    program, base_recipe, write_recipe, fp32, tmp_path, distill, installed, by_name
):
    recipe = recipe_of(base_recipe, write_recipe)
    checked = distill(program, *BY_FILE, "check", "--recipe", recipe)
    assert checked.returncode == 0 and "reversal" in checked.stdout, checked.stderr
    shown = distill(program, *BY_FILE, "data", "show", "--recipe", recipe, "--examples", "1")
    assert "words (" in shown.stdout and "backwards (" in shown.stdout and "dog soup" in shown.stdout, shown.stderr
    folder = tmp_path / "run"
    by_entry = installed(kinds="reversal = toy_kind:REVERSAL")
    listed = distill(program, "list", "kinds", "--markdown", env=by_entry)
    assert "| `reversal` | tokens | first | words said backwards |" in listed.stdout, listed.stderr
    start = ("--recipe", recipe, "--ds_config", fp32, "--run-dir", folder)
    program.run(*start, *BY_FILE, "--set", "stop.max_steps=2", ranks=2).well()
    program.run(*start, "--set", "stop.max_steps=3", ranks=2, env=by_entry).well()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert max(record["step"] for record in lines if record["kind"] == "train") == 3
    done = distill(program, "--plugin", "toy_kind", "evaluate", folder, "--json", tmp_path / "rows.json", env=by_name)
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
