"""Tones and what is said of them: a student that hears is trained, judged, resumed, exported and evaluated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import tiny_speaker
import yaml
from tones import RATE, WORDS, listed, tones
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer

from distill_engine.metrics.text import error_rate


def recipe(folder, **data):
    teacher = tiny_speaker.save(folder / "teacher")
    files = {split: str(tones(folder, rows, f"{split}.jsonl")) for split, rows in (("train", 12), ("valid", 5))}
    for file in map(Path, files.values()):  # each third row is in another language than the rest
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        listed(folder, file.name, [{**row, **({} if n % 3 else {"language": "en"})} for n, row in enumerate(rows)])
    languages = {"target_language": "de", "language": "language"}
    entry = {"kind": "speech", "cache_features": True, **languages, **files, **data}
    return {
        "name": "speech",
        "teacher": {"path": str(teacher), "allow_noise": True},  # its weights are random
        "student": {"decoder_layers": 1},
        "losses": {"weights": {"task": 1, "prediction": 1, "hidden": 1, "cross_attention": 1}},
        "data": {"tasks": [entry], "label_tokens": 24, "cache_dir": str(folder / "cache")},
        "batch": {"per_rank": 2},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "validation": {"every_steps": 2, "metric": "wer", "generate_examples": 5, "samples": 2, "patience": None},
        "checkpoint": {"every_steps": 2},
        "logging": {"every_steps": 1, "wandb": {"mode": "disabled"}},
        "stop": {"max_steps": 2},
    }


def test_a_student_hears_as_plain_transformers_does(program, tmp_path, fp32):
    folder, file = tmp_path / "run", tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(tmp_path)))
    start = ("--recipe", file, "--ds_config", fp32, "--run-dir", folder)
    program.run(*start, ranks=2).well()
    program.run(*start, "--set", "stop.max_steps=3", ranks=2).well()  # goes on
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert steps == [1, 2, 3]
    valid = [record["values"] for record in records if record["kind"] == "valid"]
    assert valid and all(values["valid/wer"] >= 0 for values in valid)
    said = json.loads((folder / "teacher_samples.json").read_text())["rows"]
    assert [row["context"] for row in said] == ["valid0.wav (0.3 s)", "valid1.wav (0.3 s)"]
    (entry, *others) = (tmp_path / "cache" / "features").iterdir()
    assert entry.is_dir() and len(others) == 1

    # `distill evaluate`, in another process, says of the same sounds what plain transformers does
    out, best = tmp_path / "evaluation.json", folder / "best"
    command = [sys.executable, "-m", "distill_engine.cli", "evaluate", folder, "--generate", "--latency", "--json", out]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=tmp_path, env=program.environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    student = AutoModelForSpeechSeq2Seq.from_pretrained(best)
    tokenizer, extractor = (
        AutoTokenizer.from_pretrained(best),
        AutoFeatureExtractor.from_pretrained(tmp_path / "teacher"),
    )
    heard = [soundfile.read(tmp_path / f"valid{number}.wav", dtype="float32")[0] for number in range(5)]
    languages = ["de" if number % 3 else "en" for number in range(5)]
    ids = student.generate(extractor(heard, sampling_rate=RATE, return_tensors="pt").input_features, language=languages)
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    (values,) = json.loads(out.read_text()).values()
    references = [[f"{word} tone"] for word in (*WORDS.values(), *WORDS.values())][:5]
    assert values["wer"] == pytest.approx(error_rate.WORDS.value(texts, references))
    assert values["ms_per_reply"] > 0
