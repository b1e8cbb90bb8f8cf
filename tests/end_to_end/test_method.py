"""docs/method.py is the whole method: its first losses are the engine's."""

import subprocess
import sys
from pathlib import Path

import pytest

from distill_engine.telemetry.jsonl import read_history

ROOT = Path(__file__).parents[2]
STEPS = 20


def test_its_losses_are_those_of_the_engine(program, fp32, tmp_path):
    limits = ("schedule.total_steps=400", f"stop.max_steps={STEPS}", "validation.every_steps=1000")
    said = ("logging.every_steps=1", "logging.wandb.mode=disabled", "validation.samples=0")
    settings = [word for setting in (*limits, *said) for word in ("--set", setting)]
    recipe = ROOT / "recipes" / "demo.yaml"
    program.run("--recipe", recipe, "--ds_config", fp32, "--run-dir", tmp_path / "run", *settings).well()
    records = [record for record in read_history(tmp_path / "run" / "metrics.jsonl") if record.kind == "train"]
    engine = [record.values["train/total"] for record in records]
    code = f"import method; print([loss for loss in method.distil({STEPS})])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plain = [float(number) for number in done.stdout.strip().splitlines()[-1].strip("[]").split(",")]
    assert len(engine) == STEPS and engine == pytest.approx(plain, rel=1e-5)


def test_it_is_one_page():
    assert len((ROOT / "docs" / "method.py").read_text(encoding="utf-8").splitlines()) <= 150
