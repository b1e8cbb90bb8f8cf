"""TinyBERT-style and DistilBERT-style, each for Blenderbot and BART: from the deepspeed command to a loadable student.

Each system trains once on 2 ranks; the checks below look at what that run left in its folder.
"""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from deepspeed.accelerator import get_accelerator
from safetensors.torch import load_file

from distill_engine.arithmetic import products
from distill_engine.losses.config import LossWeights
from distill_engine.telemetry.jsonl import read_history

STEPS = 6
SYSTEMS = [(style, family) for style in ("tinybert", "distilbert") for family in ("blenderbot", "bart")]
WEIGHTS = {
    "tinybert": {
        "task": 1.0,
        "embedding": 4.0,
        "hidden": 8.0,
        "self_attention": 4.0,
        "cross_attention": 2.0,
        "prediction": 16.0,
    },
    "distilbert": {"task": 1.0, "encoder": 8.0, "hidden": 6.0, "prediction": 4.0},
}
# Written out here, so that a term that is lost or added on the way is noticed.
TERMS = {
    "tinybert": {
        "task": 1.0,
        "encoder_embedding": 4.0,
        "decoder_embedding": 4.0,
        "encoder_hidden": 8.0,
        "decoder_hidden": 8.0,
        "encoder_self_attention": 4.0,
        "decoder_self_attention": 4.0,
        "cross_attention": 2.0,
        "prediction": 16.0,
    },
    "distilbert": {"task": 1.0, "encoder": 8.0, "encoder_hidden": 6.0, "decoder_hidden": 6.0, "prediction": 4.0},
}
LAYERS = {"encoder": 1, "decoder": 2}  # of the students
STUDENTS = {
    "tinybert": {"init": "random", "width": 16, "ffn_width": 24, "heads": 4, "dropout": 0.1},
    "distilbert": {"init": "teacher_layers"},
}


@dataclass(frozen=True)
class System:
    """One finished run."""

    style: str
    family: str
    folder: Path
    recipe: dict
    said: str

    def history(self, kind: str) -> list:
        return [record for record in read_history(self.folder / "metrics.jsonl") if record.kind == kind]

    def checkpoint(self, step: int) -> dict:
        file = self.folder / f"checkpoints/step-{step:08d}/student/engine/mp_rank_00_model_states.pt"
        return torch.load(file, map_location="cpu", weights_only=False)


def recipe_of(style: str, family: str, base: dict, data: Path) -> dict:
    """The distilbert rows reproduce ParlAI's means and accumulate; BART also reads the demo."""
    recipe = base | {"name": f"{family}-{style}"}
    recipe["student"] = STUDENTS[style] | {f"{stack}_layers": layers for stack, layers in LAYERS.items()}
    recipe["losses"] = {"weights": WEIGHTS[style], "temperature": 2.0}
    files = {split: str(data / f"{split}.jsonl") for split in ("train", "valid")}
    recipe["data"]["tasks"].append({"name": "conversations", "label": "talks", "weight": 2.0, **files})
    if family == "bart":
        recipe["data"]["tasks"].append({"name": "demo", "train_examples": 60, "valid_examples": 7})
    if style == "distilbert":
        recipe["losses"]["definition"] = "parlai"
        recipe["batch"] = {"per_rank": 2, "accumulation_steps": 2, "pad_to_multiple_of": 8}
    recipe["stop"] = {"max_steps": STEPS}
    recipe["logging"]["wandb"] = {"mode": "offline"}
    return recipe


@pytest.fixture(scope="session")
def systems(program, base_recipe, write_recipe, data, fp32, tmp_path_factory):
    """(style, family) -> its finished run, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("systems")
    made: dict[tuple[str, str], System] = {}

    def system(style: str, family: str) -> System:
        if (style, family) not in made:
            recipe = recipe_of(style, family, base_recipe(family), data)
            run_dir = folder / recipe["name"]
            # one row with the default file, which falls back from fp16 to what this machine can do
            precision = [] if (style, family) == ("distilbert", "bart") else ["--ds_config", fp32]
            ended = program.run("--recipe", write_recipe(recipe), "--run-dir", run_dir, *precision, ranks=2)
            made[style, family] = System(style, family, run_dir, recipe, ended.well().said)
        return made[style, family]

    return system


@pytest.fixture(params=SYSTEMS, ids=lambda row: f"{row[1]}-{row[0]}")
def system(request, systems) -> System:
    return systems(*request.param)


def test_the_run_folder_is_complete(system):
    present = {path.name for path in system.folder.iterdir()}
    assert {"best", "checkpoints", "metrics.jsonl", "recipe.yaml", "ds_config.json", "wandb"} <= present
    resolved = yaml.safe_load((system.folder / "recipe.yaml").read_text())
    assert resolved["losses"]["weights"] == dict.fromkeys(LossWeights.fields(), 0.0) | WEIGHTS[system.style]
    assert resolved["optimizer"]["betas"] == [0.9, 0.999], "defaults are written out"
    config = json.loads((system.folder / "ds_config.json").read_text())
    batch = system.recipe["batch"]
    assert config["zero_optimization"]["stage"] == 2
    assert config["train_batch_size"] == batch["per_rank"] * batch.get("accumulation_steps", 1) * 2
    teacher = json.loads((system.folder / "teacher_ds_config.json").read_text())
    assert teacher["zero_optimization"]["stage"] == 3
    assert list((system.folder / "wandb").glob("offline-run-*/*.wandb")), "W&B's offline file"
    run_id = (system.folder / "wandb_run_id").read_text().strip()
    assert [path.name for path in (system.folder / "wandb").glob(f"offline-run-*-{run_id}")]
    assert sorted(path.name for path in (system.folder / "checkpoints").iterdir()) == [
        "latest",
        "step-00000003",
        "step-00000006",
    ]


def test_the_teachers_sample_replies_stand_beside_the_students(system):
    asked = json.loads((system.folder / "teacher_samples.json").read_text())["rows"]
    tables = system.history("samples")
    assert [record.step for record in tables] == [record.step for record in system.history("valid")]
    for record in tables:
        kept = [{name: row[name] for name in ("dataset", "context", "reference", "teacher")} for row in record.rows]
        assert kept == asked and all("student" in row for row in record.rows)


def test_only_one_rank_speaks_and_libraries_are_silent(system):
    lines = [line for line in system.said.splitlines() if "[launch.py:" not in line and "[runner.py:" not in line]
    assert len([line for line in lines if f"step {STEPS}/{STEPS}  loss" in line]) == 1, system.said
    warnings = [line for line in lines if "WARN" in line.upper()]
    expected = "WARNING: the teacher predicts validation labels no better than chance"  # its weights are random
    assert all(line.startswith(expected) for line in warnings), system.said


def test_every_active_term_and_no_other_is_recorded(system):
    expected = TERMS[system.style]
    train = system.history("train")
    assert [record.step for record in train] == list(range(1, STEPS + 1))
    for record in train:
        for form in ("raw", "weighted"):
            found = {name.split("/")[2] for name in record.values if name.endswith(f"/{form}")}
            assert found == set(expected)
        layered = {name.split("/")[2] for name in record.values if "/layer/" in name}
        assert layered == {term for term in expected if "hidden" in term or "attention" in term}
        for term in layered:
            layers = [value for name, value in record.values.items() if name.startswith(f"train/term/{term}/layer/")]
            assert len(layers) == LAYERS["encoder" if term.startswith("encoder") else "decoder"]
            assert math.isclose(sum(layers) / len(layers), record.values[f"train/term/{term}/raw"], rel_tol=1e-5)
    for record in system.history("valid"):
        assert {name.split("/")[2] for name in record.values if name.endswith("/raw")} == set(expected)


def test_the_total_is_the_weighted_sum(system):
    for record in system.history("train"):
        values = record.values
        total = 0.0
        for term, weight in TERMS[system.style].items():
            raw = values[f"train/term/{term}/raw"]
            assert math.isfinite(raw) and raw > 0, (term, record)
            assert math.isclose(values[f"train/term/{term}/weighted"], weight * raw, rel_tol=1e-12)
            total += weight * raw
        assert math.isclose(values["train/total"], total, rel_tol=2e-5), record
        assert math.isclose(values["train/ppl"], math.exp(values["train/term/task/raw"]), rel_tol=1e-9)
        shares = [value for name, value in values.items() if name.startswith("time/share/")]
        assert math.isclose(sum(shares), 1.0, rel_tol=1e-6)


def test_validation_is_per_task_and_decides_the_best(system):
    labels = [task.get("label", task["name"]) for task in system.recipe["data"]["tasks"]]
    valid = system.history("valid")
    assert [record.step for record in valid] == [3, 6]
    for record in valid:
        mean = sum(record.values[f"valid/{label}/ppl"] for label in labels) / len(labels)
        assert math.isclose(record.values["valid/ppl"], mean, rel_tol=1e-9)
        assert 0 <= record.values["valid/teacher_agreement"] <= 1
    best = min(valid, key=lambda record: record.values["valid/ppl"])
    assert valid[-1].values["best/ppl"] == best.values["valid/ppl"]
    assert (system.folder / "best").resolve().name == f"step-{best.step:08d}"
    card = (system.folder / "best" / "README.md").read_text()
    assert f"| ppl | {best.values['valid/ppl']:.5g} |" in card and f"(step {best.step})" in card


def test_the_export_is_the_best_checkpoint_without_projections(system):
    best = min(system.history("valid"), key=lambda record: record.values["valid/ppl"])
    trained = system.checkpoint(best.step)["module"]
    projections = [name for name in trained if not name.startswith("adapter.model.")]
    assert bool(projections) == (system.style == "tinybert"), "beside the student, where widths differ"
    exported = load_file(system.folder / "best" / "model.safetensors")
    prefix = "adapter.model."
    assert set(exported) <= {name.removeprefix(prefix) for name in trained if name.startswith(prefix)}
    for name, tensor in exported.items():
        assert torch.equal(tensor, trained[prefix + name]), name
    layers = {stack: len({name.split(".")[3] for name in exported if f".{stack}.layers." in name}) for stack in LAYERS}
    assert layers == LAYERS


def test_the_student_learns(system):
    train = system.history("train")
    assert train[-1].values["train/total"] < train[0].values["train/total"]


def test_fp16_that_this_machine_cannot_do_is_replaced_and_said(systems):
    run = systems("distilbert", "bart")
    config = json.loads((run.folder / "ds_config.json").read_text())
    if get_accelerator().is_fp16_supported():
        pytest.skip("this CPU computes in fp16 itself")
    assert config["bf16"]["enabled"] is True and "fp16" not in config
    assert "training in bf16, without loss scaling" in run.said
    assert load_file(run.folder / "best" / "model.safetensors")["model.shared.weight"].dtype == torch.bfloat16


FRESH = """
import json, sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
answers = {}
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    asked = tokenizer("hello do you have a dog", return_tensors="pt")
    said = model.generate(asked.input_ids, attention_mask=asked.attention_mask, max_new_tokens=8, do_sample=False)
    answers[folder] = {
        "lost": sorted(map(str, info["missing_keys"])) + sorted(map(str, info["unexpected_keys"])),
        "ids": said[0].tolist(),
        "text": tokenizer.decode(said[0]),
        "kind": model.config.model_type,
        "width": model.config.d_model,
        "layers": [model.config.encoder_layers, model.config.decoder_layers],
    }
foreign = [name for name in ("distill_engine", "deepspeed") if name in sys.modules]
print(json.dumps({"answers": answers, "foreign": foreign}))
"""


def test_the_students_load_in_a_fresh_process_and_generate(systems, program, tmp_path):
    runs = [systems(*row) for row in SYSTEMS]
    copies = []
    for run in runs:  # a copy elsewhere: the folder must stand alone
        copy = tmp_path / run.folder.name
        subprocess.run(["cp", "-rL", run.folder / "best", copy], check=True)
        copies.append(copy)
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, *map(str, copies)],
        env=program.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["foreign"] == []
    for run, copy in zip(runs, copies, strict=True):
        answer = told["answers"][str(copy)]
        assert answer["lost"] == []
        assert 1 <= len(answer["ids"]) <= 10 and isinstance(answer["text"], str)
        assert answer["ids"][0] == (2 if run.family == "bart" else 1), "begins with the decoder's start token"
        assert answer["kind"] == run.family
        assert answer["width"] == (16 if run.style == "tinybert" else 32)
        assert answer["layers"] == [LAYERS["encoder"], LAYERS["decoder"]]


def test_fused_losses_train_as_the_reference_does(systems, program, write_recipe, fp32, tmp_path):
    """Two ranks, projections, accumulated micro-batches, activation checkpointing: the same curve, dropout included."""
    recipe = systems("tinybert", "blenderbot").recipe
    recipe = recipe | {"batch": {"per_rank": 2, "accumulation_steps": 2}, "logging": {"wandb": {"mode": "disabled"}}}
    recipe["student"] = recipe["student"] | {"activation_checkpointing": True}
    recipe["logging"]["every_steps"] = 1
    curves = {}
    for choice in ("reference", "fused"):
        losses = recipe["losses"] | {"kernels": dict.fromkeys(("attention", "hidden", "prediction"), choice)}
        file = write_recipe(recipe | {"name": choice, "losses": losses})
        said = program.run("--recipe", file, "--run-dir", tmp_path / choice, "--ds_config", fp32, ranks=2).well().said
        name = {"reference": "reference", "fused": "chunked"}[choice]
        assert f"loss kernels: attention {name}, hidden {name}, prediction {name}" in said
        assert f"float32 products: {products.library()} (" in said
        curves[choice] = list(read_history(tmp_path / choice / "metrics.jsonl"))
    assert len(curves["fused"]) == len(curves["reference"]) >= STEPS
    for fused, reference in zip(curves["fused"], curves["reference"], strict=True):
        for metric, value in reference.values.items():
            if "/term/" in metric or metric.endswith(("accuracy", "agreement", "grad_norm", "ppl")):
                assert math.isclose(fused.values[metric], value, rel_tol=1e-4, abs_tol=1e-6), (metric, fused.step)
