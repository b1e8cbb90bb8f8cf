"""What a run leaves for others: the truth about its exports, what DeepSpeed's own tools read, what a restart says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from distill_engine.cluster.exit_codes import DONE, FAILED
from distill_engine.export.run import export_run
from launcher.disk import job_of_start, space_of

SPOILED = "model.encoder.embed_positions.weight"


@pytest.fixture(scope="module")
def command(base_recipe, write_recipe, fp32):
    """(folder, teacher) -> arguments of a run of three steps."""

    def make(folder: Path, teacher: Path | str = "bart", ds_config: Path = fp32) -> list:
        recipe = base_recipe(teacher) | {"stop": {"max_steps": 3}}
        return ["--recipe", write_recipe(recipe), "--ds_config", ds_config, "--run-dir", folder]

    return make


@pytest.fixture(scope="module")
def finished(program, command, tmp_path_factory):
    """(folder of a run, what it said)."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, program.run(*command(folder)).well().said


def last(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*"))


def test_the_end_names_the_exported_step(finished):
    folder, said = finished
    assert f"{folder / 'best'} has the student of step 3" in said
    assert (folder / "student" / "config.json").is_file()


def test_a_run_without_any_export_says_so_and_the_newest_checkpoint_can_be_exported(
    program, command, make_teacher, tmp_path
):
    teacher = make_teacher(tmp_path / "teacher", "bart")
    weights = load_file(teacher / "model.safetensors")
    weights[SPOILED][60] = float("nan")  # a position that no text here reaches
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    run = tmp_path / "run"
    for start in (1, 2):
        ended = program.run(*command(run, teacher))
        assert ended.code == FAILED and "Traceback" not in ended.said, (start, ended.said)
        assert f"no export has succeeded: there is no {run / 'best'}" in ended.said
        assert "--which last" in ended.said and not (run / "best").exists()
    said: list[str] = []
    assert export_run(run, tmp_path / "out", "last", said.append) == 3
    assert SPOILED in said[0] and "not finite" in said[0]
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    stored = torch.load(last(run) / "student" / "engine" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    for name, weight in loaded.named_parameters():
        assert torch.allclose(weight, stored[f"adapter.model.{name}"], 0, 0, equal_nan=True), name


def test_zero_to_fp32_works_as_deepspeed_documents_it(finished, tmp_path):
    folder, _ = finished
    student = last(folder) / "student"
    done = subprocess.run(
        [sys.executable, "zero_to_fp32.py", ".", tmp_path / "out"], cwd=student, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "out").glob("*.bin")
    merged = torch.load(file, weights_only=True)
    stored = torch.load(student / "engine" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    name = "adapter.model.model.decoder.layers.0.fc1.weight"
    assert torch.equal(merged[name], stored[name])


def test_the_room_that_it_needs_is_computed_from_its_own_sizes(finished, fp32):
    """By the start, which has the model, and by the preflight, which has its sizes."""
    folder, said = finished
    flat = " ".join(said.split())
    told = re.search(r"a checkpoint takes ([\d.]+) ([KM])iB \(up to 2 kept and one being written\)", flat)
    assert told, said
    files = json.loads((last(folder) / "manifest.json").read_text())["files"]
    took = sum(facts["bytes"] for name, facts in files.items() if name.endswith("_states.pt"))
    predicted = float(told[1]) * {"K": 2**10, "M": 2**20}[told[2]]
    assert predicted * 0.9 < took < predicted * 1.1 + 64 * 1024
    planned = space_of(job_of_start(folder / "recipe.yaml", fp32, []))
    assert planned.words() in flat


def test_a_restart_names_what_has_changed_in_the_deepspeed_configuration(program, command, fp32, tmp_path):
    config, run = json.loads(fp32.read_text()), tmp_path / "run"
    config["zero_optimization"]["reduce_bucket_size"] = 5_000_000
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(config))
    config["zero_optimization"]["reduce_bucket_size"] = 6_000_000
    second.write_text(json.dumps(config))
    assert "ds_config" not in program.run(*command(run, ds_config=first)).well().said
    ended = program.run(*command(run, ds_config=second))
    flat = " ".join(ended.said.split())
    assert ended.code == DONE and "resumed after step 3" in flat
    assert "ds_config zero_optimization.reduce_bucket_size: 5000000 -> 6000000" in flat
