"""A teacher and a rollout from outside the package: checked, trained on two ranks, resumed, evaluated, exported.

By --plugin FILE first, then by the entry points of a package that is installed, last by --plugin MODULE.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
BY_FILE = ("--plugin", HERE / "toy_teacher.py", "--plugin", HERE / "toy_rollout.py")


def test_both_are_checked_trained_resumed_evaluated_and_exported(
    program, base_recipe, write_recipe, fp32, tmp_path, distill, installed, by_name
):
    made = base_recipe()
    made["teacher"]["source"], made["rollout"] = "bigrams", {"source": "beginnings"}
    made["losses"]["weights"] = {"task": 1.0, "prediction": 1.0}
    made["validation"] = {"every_steps": 4}
    recipe, folder = write_recipe(made), tmp_path / "run"
    done = distill(program, "check", "--recipe", recipe, *BY_FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    done = distill(program, "check", "--recipe", recipe)
    assert done.returncode == 78 and "teacher.source" in done.stderr and "live" in done.stderr
    env = installed(teachers="bigrams = toy_teacher:BIGRAMS", rollouts="beginnings = toy_rollout:BEGINNINGS")
    listed = distill(program, "list", "rollouts", "--markdown", env=env)
    assert "| `beginnings` | the dataset's labels, one token longer at every step |" in listed.stdout, listed.stderr

    start = ("--recipe", recipe, "--ds_config", fp32, "--run-dir", folder)
    program.run(*start, *BY_FILE, "--set", "stop.max_steps=2", ranks=2).well()
    program.run(*start, "--set", "stop.max_steps=4", ranks=2, env=env).well()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [one["values"] for one in records if one["kind"] == "train"]
    assert len(trained) == 4 and all(values["train/term/prediction/raw"] > 0 for values in trained)
    parts = folder / "checkpoints" / "step-00000004"
    assert json.loads((parts / "rollout" / "state.json").read_text()) == {"tokens": 4}
    assert json.loads((parts / "teacher" / "state.json").read_text())["asked"] > 4, "each step, and validations"
    assert json.loads((parts / "manifest.json").read_text())["identity"]["bigrams"] == 7
    (validated,) = (one["values"] for one in records if one["kind"] == "valid" and one["step"] == 4)
    assert validated["valid/teacher_ppl"] > 0
    by_module = ("--plugin", "toy_teacher", "--plugin", "toy_rollout")
    for command in (("evaluate", folder), ("export", folder, tmp_path / "student", "--which", "last")):
        done = distill(program, *by_module, *command, env=by_name)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "student" / "model.safetensors").is_file()
