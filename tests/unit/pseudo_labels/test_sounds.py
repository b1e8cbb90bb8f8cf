"""Sounds that the teacher writes down: in the language asked for, filtered by errors against gold, as a list that a
recipe mixes with gold."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_speaker
import torch
import yaml
from tones import RATE, listed, tone, tones
from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration
from typer.testing import CliRunner

from distill_engine.cli import app
from distill_engine.data.kinds.speech import KIND, SpeechSource
from distill_engine.recipe.rules import read_recipe
from distill_engine.setup.prepare import prepare

SOUNDS = 6
GERMAN = (0, 1, 2, 3)  # rows without a language; the others are in English


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe of tones and their teacher; one row's text is longer than a run may learn."""
    folder = tmp_path_factory.mktemp("sounds")
    file = tones(folder, SOUNDS)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tone(folder / "long.wav")
    rows = [row | ({} if number in GERMAN else {"language": "en"}) for number, row in enumerate(rows)]
    listed(folder, file.name, [*rows[:2], {"audio": "long.wav", "text": "high " * 30}, *rows[2:]])
    teacher = tiny_speaker.save(folder / "teacher")
    model = WhisperForConditionalGeneration.from_pretrained(teacher)
    with torch.no_grad():  # it hears a difference
        for name, value in model.named_parameters():
            value.mul_(5 if "encoder_attn.v_proj" in name or "encoder_attn.out_proj" in name else 1)
    model.save_pretrained(teacher)
    content = {
        "name": "speech",
        "teacher": {"path": str(teacher)},
        "student": {"decoder_layers": 1},
        "data": {"tasks": [{"kind": "speech", "target_language": "de", "language": "language", "train": str(file)}],
                 "label_tokens": 24,
                 "max_bad_rows": 1, "cache_dir": str(folder / "cache")},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "validation": {"patience": None},
        "stop": {"max_steps": 2},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder


def pseudo_label(folder, *options, code=0):
    words = ["pseudo-label", str(folder / "recipe.yaml"), "--out", str(folder / "out"), "--batch-size", "4"]
    done = CliRunner().invoke(app, [*words, "--generation", "max_new_tokens=8", *options])
    assert done.exit_code == code, done.output
    return done


def plain_texts(folder) -> list[str]:
    """What plain transformers makes of the same sounds."""
    model = WhisperForConditionalGeneration.from_pretrained(folder / "teacher").eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder / "teacher")
    heard = [soundfile.read(folder / f"train{number}.wav", dtype="float32")[0] for number in range(SOUNDS)]
    features = extractor(heard, sampling_rate=RATE, return_tensors="pt").input_features
    languages = ["de" if number in GERMAN else "en" for number in range(SOUNDS)]
    ids = model.generate(features, language=languages, max_new_tokens=8)
    return AutoTokenizer.from_pretrained(folder / "teacher").batch_decode(ids, skip_special_tokens=True)


def test_the_teachers_transcripts_are_a_list_that_a_recipe_mixes_with_gold(folder):
    (entry,) = yaml.safe_load(pseudo_label(folder).stdout)
    assert {key: entry[key] for key in ("kind", "label", "target_language", "language")} == {
        "kind": "speech", "label": "speech_pseudo", "target_language": "de", "language": "language",
    }  # fmt: skip
    texts = plain_texts(folder)
    whole = [number for number, text in enumerate(texts) if "\ufffd" not in text]  # else 3 bytes for each of 8 tokens
    assert 0 < len(whole) < SOUNDS
    rows = [json.loads(line) for line in Path(entry["train"]).read_text().splitlines()]
    own = {number: {} if number in GERMAN else {"language": "en"} for number in whole}
    assert rows == [{"audio": str(folder / f"train{n}.wav"), "text": texts[n], **own[n]} for n in whole]
    assert summary(folder)["left_out"] == {"longer than data.label_tokens": SOUNDS - len(whole)}

    pseudo_label(folder, "--at-most", "wer=0.5", code=78)
    assert summary(folder)["left_out"] == {"wer above 0.5": SOUNDS}
    pseudo_label(folder)
    mixed = yaml.safe_load((folder / "recipe.yaml").read_text())
    mixed["data"]["tasks"].append(entry)
    (folder / "mixed.yaml").write_text(yaml.safe_dump(mixed))
    gold, pseudo = prepare(read_recipe(folder / "mixed.yaml"), "mixed").train_datasets
    assert (len(gold), len(pseudo)) == (SOUNDS, len(whole))
    for own, number in enumerate(whole):
        assert pseudo.example(own).prompt == gold.example(number).prompt
        np.testing.assert_array_equal(pseudo.sound(own).samples, gold.sound(number).samples)


def summary(folder) -> dict:
    """Of the dataset; the teacher was asked for the recipe's language."""
    content = json.loads((folder / "out" / "summary.json").read_text())
    assert "de" in content["settings"]["language"]
    (dataset,) = content["datasets"]
    return dataset


def test_sounds_in_rows_have_no_paths_to_write():
    rows = SpeechSource(kind="speech", train="sounds.parquet")
    with pytest.raises(ValueError, match=r"speech holds its sounds in rows.*Write its sounds to files"):
        KIND.written(rows, [""], "")
