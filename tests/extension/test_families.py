"""A model family from outside the package: checked, trained on two ranks, resumed, evaluated, exported; by file, by
entry point and by module."""

import json
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BY_FILE = ("--plugin", HERE / "toy_family.py")


@pytest.fixture(scope="module")
def recipe(base_recipe, write_recipe, teachers, tmp_path_factory) -> Path:
    """The tiny BART's weights are a teacher of this family, too."""
    made = base_recipe()
    folder = tmp_path_factory.mktemp("toy") / "teacher"
    shutil.copytree(teachers["bart"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "toy_model", "architectures": ["ToyModel"]}))
    made["teacher"]["path"] = str(folder)
    made["student"].pop("family", None)
    made["validation"] |= {"every_steps": 2, "samples": 0}
    return write_recipe(made)


def test_a_plugins_family_is_checked_trained_resumed_evaluated_and_exported(
    program, recipe, fp32, tmp_path, distill, installed, by_name
):
    refused = distill(program, "check", "--recipe", recipe)
    assert refused.returncode == 78 and "model_type 'toy_model'" in refused.stderr
    checked = distill(program, *BY_FILE, "check", "--recipe", recipe)
    assert checked.returncode == 0, checked.stderr
    by_entry = installed(families="toy_model = toy_family:TOY")
    listed = distill(program, "list", "families", "--markdown", env=by_entry)
    assert "| `toy_model` | BART's network, decoding from PAD |" in listed.stdout, listed.stderr

    run, export = tmp_path / "run", tmp_path / "export"
    start = ("--recipe", recipe, "--ds_config", fp32, "--run-dir", run)
    program.run(*start, *BY_FILE, "--set", "stop.max_steps=2", ranks=2).well()
    program.run(*start, "--set", "stop.max_steps=3", ranks=2, env=by_entry).well()
    evaluated = distill(program, "--plugin", "toy_family", "evaluate", run, env=by_name)
    assert evaluated.returncode == 0 and "teacher acc" in evaluated.stdout, evaluated.stderr
    done = distill(program, "export", run, export, "--which", "last", env=by_entry)
    assert done.returncode == 0, done.stderr
    assert json.loads((export / "config.json").read_text())["model_type"] == "toy_model"
    assert json.loads((export / "generation_config.json").read_text())["decoder_start_token_id"] == 0
