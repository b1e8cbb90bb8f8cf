"""The BlenderBot-3B recipe over the four dialogue datasets: checked, and run with all as it is there but size."""

import math
import os
from pathlib import Path

import pytest

from distill_engine.telemetry.jsonl import read_history

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "bb3b_tinybert.yaml"
DATA = Path(os.environ.get("TASKDATA_DIR", ROOT / "tests" / "fixtures" / "taskdata")) / "raw"
DATASETS = ("blended_skill_talk", "wizard_of_wikipedia", "convai2:normalized", "empathetic_dialogues")


@pytest.fixture(scope="module")
def shrunken(make_teacher, tmp_path_factory) -> list[str]:
    """`--set` words: a teacher of 2 + 24 layers with 32 heads, as the real one, 40 times narrower; 4 steps."""
    teacher = make_teacher(
        tmp_path_factory.mktemp("bb3b") / "teacher", "blenderbot", d_model=64, decoder_layers=24,
        encoder_attention_heads=32, decoder_attention_heads=32, max_position_embeddings=128,
    )  # fmt: skip
    values = {
        "teacher.path": teacher, "teacher.allow_noise": True, "student.width": 64, "student.ffn_width": 128,
        "data.root": DATA,
        "validation.every_seconds": "null", "validation.every_steps": 2, "stop.max_steps": 4,
        "logging.every_steps": 1, "batch.per_rank": 4, "validation.samples": 0,
    }  # fmt: skip
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def test_the_recipe_passes_the_check(shrunken, program):
    done = program.distill("check", "--recipe", ROOT / RECIPE, *shrunken)
    assert done.returncode == 0, done.stderr
    for dataset in DATASETS:
        assert dataset in done.stdout


def test_it_trains_and_validates_each_task(shrunken, program, fp32, tmp_path):
    run = tmp_path / "run"
    said = program.run("--recipe", RECIPE, "--run-dir", run, "--ds_config", fp32, *shrunken, ranks=2).well().said
    assert "convai2:normalized" in next(line for line in said.splitlines() if "mixture" in line or "share" in line)
    records = list(read_history(run / "metrics.jsonl"))
    valid = [record for record in records if record.kind == "valid"]
    assert [record.step for record in valid] == [2, 4]
    for record in valid:
        perplexities = [record.values[f"valid/{dataset}/ppl"] for dataset in DATASETS]
        assert all(math.isfinite(value) and value > 1 for value in perplexities)
        assert math.isclose(record.values["valid/ppl"], sum(perplexities) / 4, rel_tol=1e-9)  # macro, as ParlAI
    layers = {name for record in records for name in record.values if "decoder_hidden/layer/" in name}
    assert len(layers) == 9
    assert (run / "best" / "model.safetensors").is_file()
