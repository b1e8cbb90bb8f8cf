"""A term and a divergence from outside the package: checked, trained on two ranks and resumed.

By `--plugin FILE`, and by the entry points of a package that is installed (its metadata on the path is all of that).
"""

import json
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
BY_FILE = ("--plugin", HERE / "toy_term.py", "--plugin", HERE / "toy_divergence.py")
MACHINE = ("time/", "memory/", "train/tokens_per_second")


@pytest.fixture(scope="module")
def recipe(base_recipe, write_recipe) -> Path:
    made = base_recipe()
    made["losses"] |= {"divergence": "k_divergence", "temperature": 2.0, "balance": "gradient_alignment"}
    made["losses"]["weights"]["cosine"] = 0.5
    made["validation"]["every_steps"] = 2
    return write_recipe(made)


def records(folder: Path, kind: str) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["values"] for record in map(json.loads, lines) if record["kind"] == kind]


def lasting(values: dict[str, float]) -> dict[str, float]:
    """What does not depend on the machine."""
    return {name: value for name, value in values.items() if not name.startswith(MACHINE)}


def test_a_plugin_is_checked_trained_resumed_and_exported(program, recipe, fp32, tmp_path, distill, by_name):
    done = distill(program, "check", "--recipe", recipe, *BY_FILE)
    assert done.returncode == 0 and "talk" in done.stdout, done.stdout + done.stderr
    start = ("--recipe", recipe, "--ds_config", fp32, *BY_FILE)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    program.run(*start, "--run-dir", whole, "--set", "stop.max_steps=4", ranks=2).well()
    for steps in (2, 4):
        program.run(*start, "--run-dir", halves, "--set", f"stop.max_steps={steps}", ranks=2).well()
    kept = yaml.safe_load((whole / "recipe.yaml").read_text())["losses"]
    assert kept["weights"]["cosine"] == 0.5 and kept["divergence"] == "k_divergence"
    undisturbed, resumed = records(whole, "train"), records(halves, "train")
    assert len(undisturbed) == len(resumed) == 4
    for one, other in zip(undisturbed, resumed, strict=True):
        assert 0 < one["train/term/encoder_cosine/raw"] < 2
        assert 0 < one["train/term/prediction/raw"] < 4 * 0.6932  # temperature squared times log 2
        assert one["train/balance/encoder_cosine"] > 0
        assert lasting(one) == lasting(other)
    assert records(whole, "valid")[-1]["valid/term/encoder_cosine/raw"] > 0
    report = distill(program, *BY_FILE, "report", whole)
    assert report.returncode == 0, report.stderr
    assert "1 - cosine of the encoder" in (whole / "report.html").read_text()
    by_module = ("--plugin", "toy_term", "--plugin", "toy_divergence")
    for command in (("evaluate", whole), ("export", whole, tmp_path / "student", "--which", "last")):
        done = distill(program, *by_module, *command, env=by_name)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_without_the_plugin_its_names_are_unknown(program, recipe, distill):
    done = distill(program, "check", "--recipe", recipe)
    assert done.returncode == 78
    assert "losses.weights.cosine is not a key that a recipe has" in done.stderr
    assert "losses.divergence is 'k_divergence'. It should be one of: forward_kl, reverse_kl, " in done.stderr
    done = distill(program, "check", "--recipe", recipe, *BY_FILE, "--set", "losses.divergence=revers_kl")
    assert done.returncode == 78 and "logit_mse, k_divergence. Did you mean reverse_kl?" in done.stderr
    done = distill(program, "check", "--recipe", recipe, *BY_FILE, "--set", "losses.weights.cosin=1")
    assert done.returncode == 78 and "Did you mean cosine?" in done.stderr
    done = distill(program, "check", "--plugin", "no_such_module")
    assert done.returncode == 78 and "--plugin no_such_module cannot be imported" in done.stderr


def test_an_installed_package_needs_no_flag(program, recipe, fp32, installed, tmp_path, distill):
    env = installed(terms="encoder_cosine = toy_term:COSINE", divergences="k_divergence = toy_divergence:K_DIVERGENCE")
    listed = distill(program, "list", "terms", "--markdown", env=env)
    assert "| `encoder_cosine` | 1 - cosine of the encoder's output |" in listed.stdout, listed.stderr
    assert "k_divergence" in distill(program, "list", "divergences", env=env).stdout
    run = ("--recipe", recipe, "--ds_config", fp32, "--run-dir", tmp_path / "run", "--set", "stop.max_steps=2")
    program.run(*run, env=env).well()
    assert records(tmp_path / "run", "train")[-1]["train/term/encoder_cosine/raw"] > 0
