"""From somebody's table and a teacher to a student, by `distill new` and the recipe it writes."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

WORDS = ("rain", "dog", "soup", "today", "name", "cat", "hello")
TOKENIZER = Path(__file__).parents[2] / "recipes" / "demo" / "tokenizer"


def t5(folder: Path) -> Path:
    """A random T5: its decoder starts with padding, and its tokenizer puts nothing before a text."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def table(file: Path, rows: int, draw: random.Random) -> Path:
    with file.open("w", newline="") as to:
        writer = csv.writer(to)
        writer.writerow(("document", "summary"))
        for _ in range(rows):
            words = draw.choices(WORDS, k=draw.randint(3, 8))
            writer.writerow((" ".join(words) + ', as "they" say', words[0]))
    return file


def test_a_table_and_a_t5_become_a_student_that_plain_transformers_loads(program, tmp_path, fp32):
    draw, recipe, folder = random.Random(1), tmp_path / "recipe.yaml", tmp_path / "run"
    data = [table(tmp_path / f"{split}.csv", rows, draw) for split, rows in (("train", 24), ("valid", 7))]
    made = program.distill("new", t5(tmp_path / "teacher"), *data, "--out", recipe)
    assert made.returncode == 0 and "'document' and target 'summary'" in made.stdout, made.stdout + made.stderr
    small = {"teacher.allow_noise": "true", "batch.per_rank": 4, "validation.every_epochs": "null",
             "validation.every_steps": 2, "stop.max_steps": 2, "validation.generate_examples": 5,
             "logging.every_steps": 1, "logging.wandb.mode": "disabled"}  # fmt: skip
    settings = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    program.run("--recipe", recipe, "--ds_config", fp32, "--run-dir", folder, *settings, ranks=2).well()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    judged = [record["values"] for record in records if record["kind"] == "valid"]
    assert judged and "valid/rouge_l" in judged[-1] and judged[-1]["best/rouge_l"] == judged[-1]["valid/rouge_l"]
    student = AutoModelForSeq2SeqLM.from_pretrained(folder / "best")
    tokenizer = AutoTokenizer.from_pretrained(folder / "best")
    assert (student.config.num_layers, student.config.num_decoder_layers) == (2, 1)
    written = student.generate(**tokenizer("rain dog soup", return_tensors="pt"), max_new_tokens=4)
    assert written[0, 0] == tokenizer.pad_token_id and written.shape[1] > 1
