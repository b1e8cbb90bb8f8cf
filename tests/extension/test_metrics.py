"""A token metric and a text metric from outside the package: each decides which student is the best, on two ranks."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM

HERE = Path(__file__).parent
BY_FILE = ("--plugin", HERE / "toy_metrics.py")
ENTRY_POINTS = "[distill_engine.metrics]\nsureness = toy_metrics:SURENESS\nvowels = toy_metrics:VOWELS\n"


def recipe_of(base_recipe, write_recipe, **validation) -> Path:
    made = base_recipe()
    made["validation"].pop("direction", None)
    made["validation"] |= {"every_steps": 1, "samples": 0} | validation
    return write_recipe(made)


def validations(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["values"] for record in map(json.loads, lines) if record["kind"] == "valid"]


@pytest.mark.parametrize("metric, best", [("sureness", max), ("vowels", min)])
def test_a_plugins_metric_decides_the_best(program, base_recipe, write_recipe, fp32, tmp_path, distill, metric, best):
    recipe = recipe_of(base_recipe, write_recipe, metric=metric, generate_examples=3 if metric == "vowels" else 0)
    folder = tmp_path / "run"
    start = ("--recipe", recipe, "--ds_config", fp32, "--run-dir", folder, *BY_FILE)
    for steps in (2, 4) if metric == "sureness" else (4,):  # what is kept as the best outlives a restart
        program.run(*start, "--set", f"stop.max_steps={steps}", ranks=2).well()
    values = validations(folder)
    assert len(values) == 4
    seen = [row[f"valid/{metric}"] for row in values]
    assert all(0 <= value <= 1 for value in seen)
    assert [row[f"best/{metric}"] for row in values] == [best(seen[: count + 1]) for count in range(4)]
    if metric == "vowels":
        assert {"valid/f1", "valid/bleu", "valid/reply_tokens", "valid/reply_seconds"} <= set(values[0])
    AutoModelForSeq2SeqLM.from_pretrained(folder / "best")
    assert f"| {metric} |" in (folder / "best" / "README.md").read_text()
    report = distill(program, *BY_FILE, "report", folder)
    assert report.returncode == 0, report.stderr


def test_without_the_plugin_the_name_is_unknown(program, base_recipe, write_recipe, distill):
    recipe = recipe_of(base_recipe, write_recipe, metric="surenes")
    done = distill(program, "check", "--recipe", recipe)
    assert done.returncode == 78 and "is 'surenes', which validation does not measure" in done.stderr
    done = distill(program, "check", "--recipe", recipe, *BY_FILE)
    assert done.returncode == 78 and "Did you mean sureness?" in done.stderr


def test_an_installed_package_needs_no_flag(program, distill, tmp_path):
    metadata = tmp_path / "toy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    done = distill(program, "list", "metrics", "--markdown", env={"PYTHONPATH": f"{tmp_path}:{HERE}"})
    assert "| `sureness` | tokens | share | max | mean probability of a label token |" in done.stdout, done.stderr
