"""A token metric and a text metric from outside the package: each decides which student is the best, on two ranks."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM

HERE = Path(__file__).parent
BY_FILE = ("--plugin", HERE / "toy_metrics.py")
ENTRY_POINTS = "sureness = toy_metrics:SURENESS\nvowels = toy_metrics:VOWELS"


def recipe_of(base_recipe, write_recipe, **validation) -> Path:
    made = base_recipe()
    made["validation"].pop("direction", None)
    made["validation"] |= {"every_steps": 1, "samples": 0} | validation
    return write_recipe(made)


def validations(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["values"] for record in map(json.loads, lines) if record["kind"] == "valid"]


@pytest.mark.parametrize("metric, best", [("sureness", max), ("vowels", min)])
def test_a_plugins_metric_decides_the_best(
    program, base_recipe, write_recipe, fp32, tmp_path, distill, installed, by_name, metric, best
):
    recipe = recipe_of(base_recipe, write_recipe, metric=metric, generate_examples=3 if metric == "vowels" else 0)
    folder = tmp_path / "run"
    by_entry = installed(metrics=ENTRY_POINTS)
    listed = distill(program, "list", "metrics", "--markdown", env=by_entry)
    assert "| `sureness` | tokens | share | max | mean probability of a label token |" in listed.stdout, listed.stderr
    start = ("--recipe", recipe, "--ds_config", fp32, "--run-dir", folder)
    if metric == "sureness":  # what is kept as the best outlives a restart
        program.run(*start, *BY_FILE, "--set", "stop.max_steps=2", ranks=2).well()
    program.run(*start, "--set", "stop.max_steps=4", ranks=2, env=by_entry).well()
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
    plugged = ("--plugin", "toy_metrics", "evaluate", folder, *(["--generate"] if metric == "vowels" else []))
    evaluated = distill(program, *plugged, env=by_name)
    assert re.search(rf"^│ {metric} .* %", evaluated.stdout, re.M), evaluated.stdout + evaluated.stderr


def test_without_the_plugin_the_name_is_unknown(program, base_recipe, write_recipe, distill):
    recipe = recipe_of(base_recipe, write_recipe, metric="surenes")
    done = distill(program, "check", "--recipe", recipe)
    assert done.returncode == 78 and "is 'surenes', which validation does not measure" in done.stderr
    done = distill(program, "check", "--recipe", recipe, *BY_FILE)
    assert done.returncode == 78 and "Did you mean sureness?" in done.stderr
