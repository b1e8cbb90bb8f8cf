"""A teacher and a rollout from outside the package: checked, trained on two ranks, resumed.

By --plugin first, then by the entry points of a package that is installed.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
BY_FILE = ("--plugin", HERE / "toy_teacher.py", "--plugin", HERE / "toy_rollout.py")
ENTRY_POINTS = """
[distill_engine.teachers]
bigrams = toy_teacher:BIGRAMS

[distill_engine.rollouts]
beginnings = toy_rollout:BEGINNINGS
"""


def test_both_are_checked_trained_and_resumed(program, base_recipe, write_recipe, fp32, tmp_path, distill):
    made = base_recipe()
    made["teacher"]["source"], made["rollout"] = "bigrams", {"source": "beginnings"}
    made["losses"]["weights"] = {"task": 1.0, "prediction": 1.0}
    made["validation"] = {"every_steps": 4}
    recipe, folder = write_recipe(made), tmp_path / "run"
    done = distill(program, "check", "--recipe", recipe, *BY_FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    done = distill(program, "check", "--recipe", recipe)
    assert done.returncode == 78 and "teacher.source" in done.stderr and "live" in done.stderr
    metadata = tmp_path / "toy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    installed = {"PYTHONPATH": f"{tmp_path}:{HERE}"}
    listed = distill(program, "list", "rollouts", "--markdown", env=installed)
    assert "| `beginnings` | the dataset's labels, one token longer at every step |" in listed.stdout, listed.stderr

    start = ("--recipe", recipe, "--ds_config", fp32, "--run-dir", folder)
    program.run(*start, *BY_FILE, "--set", "stop.max_steps=2", ranks=2).well()
    program.run(*start, "--set", "stop.max_steps=4", ranks=2, env=installed).well()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [one["values"] for one in records if one["kind"] == "train"]
    assert len(trained) == 4 and all(values["train/term/prediction/raw"] > 0 for values in trained)
    parts = folder / "checkpoints" / "step-00000004"
    assert json.loads((parts / "rollout" / "state.json").read_text()) == {"tokens": 4}
    assert json.loads((parts / "teacher" / "state.json").read_text())["asked"] > 4, "each step, and validations"
    assert json.loads((parts / "manifest.json").read_text())["identity"]["bigrams"] == 7
    (validated,) = (one["values"] for one in records if one["kind"] == "valid" and one["step"] == 4)
    assert validated["valid/teacher_ppl"] > 0
