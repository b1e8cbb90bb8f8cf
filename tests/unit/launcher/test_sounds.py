"""Plans of students that hear: a context is a window of sound, however many tokens texts may have."""

import json
from dataclasses import replace

import pytest
import tiny_speaker
import yaml
from tones import CHANNELS, FRAMES, tones
from typer.testing import CliRunner

from distill_engine.checkpoint.files import readable_bytes
from distill_engine.families.lookup import family_named
from launcher import disk
from launcher.__main__ import app
from launcher.hardware import GPUS
from launcher.job_files import read_job
from launcher.memory_model import memory
from launcher.plan import USABLE_MEMORY, fits
from launcher.preflight import NodeFacts
from launcher.remedies import remedies

GPU = GPUS["h100"]
LABELS, MULTIPLE = 24, 8


@pytest.fixture
def recipe(tmp_path):
    """A recipe for tones, with a teacher of which a plan reads the configuration alone."""
    data = {split: str(tones(tmp_path, rows, f"{split}.jsonl")) for split, rows in (("train", 5), ("valid", 3))}
    content = {
        "name": "speech",
        "teacher": {"path": str(tiny_speaker.save(tmp_path / "teacher"))},
        "student": {"decoder_layers": 1},
        "data": {"datasets": [{"kind": "speech", **data}], "label_tokens": LABELS},
        "batch": {"per_rank": 2, "pad_to_multiple_of": MULTIPLE},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "validation": {"patience": None},
        "stop": {"max_steps": 2},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def job(recipe, root):
    def make(*overrides: str):
        files = root / "ds_configs" / "zero2.json", root / "ds_configs" / "teacher_zero3.json"
        return read_job(recipe, list(overrides), 1, 1, *files, GPU)

    return make


def test_a_budget_counts_windows_of_sound_and_its_remedy_is_a_recipe(job):
    window, skips = FRAMES // 2, family_named("whisper").decoder_skips
    example = -(-window // MULTIPLE) * MULTIPLE + LABELS + skips
    assert window % MULTIPLE and job().example_length == example
    rows = 64
    # no budget need hold a thousand tokens that nobody reads
    planned, half = (job(f"batch.max_tokens={n * example}", "data.context_tokens=1000") for n in (rows, rows // 2))
    assert (planned.micro_batch, planned.contexts, half.micro_batch) == (rows, rows * window, rows // 2)
    small = replace(GPU, memory=sum(sum(memory(one).values()) for one in (planned, half)) / 2 / USABLE_MEMORY)
    text = remedies(planned, small)[0]
    assert text.startswith("batch.max_tokens: ")
    tokens, accumulation = (int(part.split(": ")[1]) for part in text.split(", "))
    remedied = job(f"batch.max_tokens={tokens}", f"batch.accumulation_steps={accumulation}")
    assert rows // 2 <= remedied.micro_batch < rows and fits(remedied, small)
    assert job(f"batch.max_tokens={example}").micro_batch == 1, "the least that a remedy names is a recipe"


def test_kept_features_are_counted_by_plan_and_preflight(recipe, root, tmp_path, monkeypatch):
    cache, out, run = tmp_path / "cache" / "none yet", tmp_path / "plan.json", tmp_path / "run"
    keeps = ["--set", "data.datasets.0.cache_features=true", "--set", f"data.cache_dir={cache}"]
    one = 2 * CHANNELS * FRAMES

    def plan(*words: str) -> tuple[str, dict[str, object]]:
        said = CliRunner().invoke(app, ["plan", str(recipe), "--gpus-per-node", "1", "--json", str(out), *words])
        return said.output, json.loads(out.read_text())["disk_bytes"]

    said, disk_bytes = plan(*keeps)
    assert disk_bytes["features"] == (5 + 3) * one == 8 * disk_bytes["features of a sound"]
    assert f"features in {cache}: up to {readable_bytes(8 * one)} for 8 sounds" in said
    assert plan(*keeps, "--examples", "1000")[1]["features"] == 1000 * one
    assert "features" not in plan()[1]
    recipe.with_name("train.jsonl").unlink()  # a plan may be made before any data are there
    assert "up to 800 bytes a sound (--examples N: of all)" in plan(*keeps)[0] and plan(*keeps)[1]["features"] is None

    tones(recipe.parent, 5, "train.jsonl")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    line = NodeFacts("n1", (), {"python": "3"}, free_bytes=2**40, seen=("n1",)).to_json()
    words = ["--recipe", str(recipe), "--ds-config", str(root / "ds_configs" / "zero2.json"), "--run-dir", str(run)]

    def report() -> str:
        done = CliRunner().invoke(app, ["preflight-report", "--nodes=1", *words, "--", *keeps], input=line)
        assert done.exit_code == 0, done.output + done.stderr
        return done.output

    assert f"preflight: features in {cache}: up to" in report()
    monkeypatch.setattr(disk, "free_bytes", lambda _: 8 * one - 1)
    assert f"preflight: warning: features in {cache}: " in report() and "computed each time" in report()
    run.mkdir()
    (run / "recipe.yaml").touch()  # an earlier start has made them
    assert "features in" not in report()
