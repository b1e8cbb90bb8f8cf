"""`distill new`: recipes for real files and tiny teachers, which preparation then accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_speaker
import yaml
from tones import tones
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

from distill_engine.cli import app
from distill_engine.recipe.rules import read_recipe
from distill_engine.setup.prepare import prepare

PAIRS = [{"article": f"a long story number {n} about a dog", "highlights": f"dog {n}", "id": str(n)} for n in range(40)]
TALKS = "".join(f"text:hello number {n}\tlabels:how are you\tepisode_done:True\n" for n in range(20))


@pytest.fixture(scope="module")
def teachers(root, tmp_path_factory) -> dict[str, Path]:
    """Family -> a random teacher with the demo's tokenizer: an encoder layer and five decoder layers."""
    found = {}
    tokenizer = AutoTokenizer.from_pretrained(root / "recipes/demo/tokenizer")
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
               "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 5, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
             "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 128}  # fmt: skip
    for family in ("bart", "blenderbot"):
        found[family] = tmp_path_factory.mktemp(family)
        start = tokenizer.eos_token_id if family == "bart" else tokenizer.bos_token_id
        config = AutoConfig.for_model(
            family, vocab_size=len(tokenizer), **special, **sizes, decoder_start_token_id=start,
            forced_eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(found[family])
        tokenizer.save_pretrained(found[family])
    return found


def new(*arguments: object):
    return CliRunner().invoke(app, ["new", *map(str, arguments)])


@pytest.fixture
def pairs(tmp_path) -> Path:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    return tmp_path / "train.jsonl"


def test_pairs_become_a_recipe_that_passes_the_check(teachers, pairs, tmp_path):
    out = tmp_path / "recipe.yaml"
    made = new(teachers["bart"], pairs, pairs.with_name("valid.jsonl"), "--out", out)
    assert made.exit_code == 0, made.output
    assert "source 'article' and target 'highlights', which are called so" in made.output
    recipe = read_recipe(out)
    ready = prepare(recipe, out)
    assert [len(dataset) for dataset in (*ready.train_datasets, *ready.valid_datasets)] == [40, 40]
    layers = json.loads((teachers["bart"] / "config.json").read_text())["decoder_layers"]
    assert recipe.student.decoder_layers == max(1, round(layers / 2))
    assert (recipe.validation.metric, recipe.validation.generate_examples) == ("rouge_l", 64)
    assert recipe.losses.balance == "gradient_alignment"
    further = {"label_smoothing", "hidden_cosine", "self_relations"}
    assert {weight for weight, value in recipe.losses.weights.root.items() if value != 1.0} == further
    contexts = ready.train_datasets[0].context_lengths
    assert contexts.max() <= recipe.data.context_tokens < contexts.max() + 16  # nothing is cut, little is spare
    again = new(teachers["bart"], pairs, "--out", out)
    assert again.exit_code == 78 and "is there already" in again.stderr


def test_dialogues_without_validation(teachers, tmp_path):
    (tmp_path / "chat.txt").write_text(TALKS)
    out = tmp_path / "recipe.yaml"
    made = new(teachers["blenderbot"], tmp_path / "chat.txt", "--faster", 4, "--out", out)
    assert made.exit_code == 0, made.output
    assert "read as parlai_text, because its first line has" in made.output
    raw = yaml.safe_load(out.read_text())
    assert raw["validation"] == {"patience": None} and raw["student"]["decoder_layers"] == 1
    assert prepare(read_recipe(out), out).dataset_labels == ("parlai_text",)


def test_what_cannot_be_told_is_asked_for(teachers, tmp_path):
    wide = tmp_path / "wide.jsonl"
    wide.write_text(json.dumps({"a": "x", "b": "y", "c": "z"}) + "\n")
    done = new(teachers["bart"], wide, "--out", tmp_path / "r.yaml")
    assert done.exit_code == 78 and "3 columns with texts (a, b, c)" in done.stderr
    (tmp_path / "prose.txt").write_text("once upon a time\n")
    done = new(teachers["bart"], tmp_path / "prose.txt", "--out", tmp_path / "r.yaml")
    assert done.exit_code == 78 and "of no kind that can be told" in done.stderr
    assert not (tmp_path / "r.yaml").exists()


def test_tones_and_texts_become_a_recipe_for_a_student_that_hears(tmp_path):
    teacher = tiny_speaker.save(tmp_path / "teacher")
    out, valid = tmp_path / "recipe.yaml", tones(tmp_path, 4, "valid.jsonl")
    made = new(teacher, tones(tmp_path, 12), valid, "--out", out)
    assert made.exit_code == 0, made.output
    told = " ".join(made.output.split())
    assert "tokens of sound" not in told and "source_language" not in told and "tokens of text" in told
    assert "context_tokens" not in out.read_text()
    recipe = read_recipe(out, [f"data.cache_dir={tmp_path / 'cache'}"])
    assert recipe.data.datasets[0].kind == "speech" and recipe.validation.metric == "wer"
    ready = prepare(recipe, out)
    assert [len(dataset) for dataset in (*ready.train_datasets, *ready.valid_datasets)] == [12, 4]
