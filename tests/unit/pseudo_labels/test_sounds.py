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
        "data": {"datasets": [{"kind": "speech", "target_language": "de", "language": "language", "train": str(file)}],
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
    own = {number: {"language": None if number in GERMAN else "en"} for number in whole}
    assert rows == [{"audio": str(folder / f"train{n}.wav"), "text": texts[n], **own[n]} for n in whole]
    assert summary(folder)["left_out"] == {"longer than data.label_tokens": SOUNDS - len(whole)}

    pseudo_label(folder, "--at-most", "wer=0.5", code=78)
    assert summary(folder)["left_out"] == {"wer above 0.5": SOUNDS}
    pseudo_label(folder)
    mixed = yaml.safe_load((folder / "recipe.yaml").read_text())
    mixed["data"]["datasets"].append(entry)
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


def test_sounds_that_rows_hold_are_written_beside_the_transcripts(folder):
    """Byte for byte, those of the kept examples and no others; what has a file of its own stays there."""
    datasets = pytest.importorskip("datasets")
    names = [f"train{number}.wav" for number in range(4)]
    held = [(folder / name).read_bytes() for name in names]
    rows = [{"audio": {"bytes": content, "path": name}, "text": "low tone"}
            for name, content in zip(names[:3], held, strict=False)]  # fmt: skip
    rows.append({"audio": {"bytes": None, "path": names[3]}, "text": "high tone"})
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "sounds.parquet"))
    data = f"data.datasets=[{{kind: speech, name: held, train: {folder / 'sounds.parquet'}, target_language: de}}]"
    (entry,) = yaml.safe_load(pseudo_label(folder, "--set", data, "--set", "data.label_tokens=28").stdout)
    own, list_file = folder / "out" / "1-held", Path(entry["train"])
    assert list_file == own.with_suffix(".jsonl")
    written = [json.loads(line)["audio"] for line in list_file.read_text().splitlines()]
    files = [f"1-held/{number:08}.wav" for number in (1, 2, 3)]
    assert written == [*files, str(folder / names[3])]
    assert [(list_file.parent / name).read_bytes() for name in files] == held[:3]
    mixed = yaml.safe_load((folder / "recipe.yaml").read_text())
    mixed["data"] |= {"datasets": [entry], "label_tokens": 28}
    (folder / "mixed.yaml").write_text(yaml.safe_dump(mixed))
    (pseudo,) = prepare(read_recipe(folder / "mixed.yaml"), "mixed").train_datasets
    first, rate = soundfile.read(folder / names[0], dtype="float32")
    np.testing.assert_array_equal(pseudo.sound(0).samples, first)
    assert len(pseudo) == 4 and rate == pseudo.sound(0).rate

    begun = (own / "00000002.wav").stat().st_mtime_ns
    (own / "00000009.wav").write_bytes(b"kept by other filters")
    (own / "00000001.wav").write_bytes(b"cut")
    pseudo_label(folder, "--set", data, "--set", "data.label_tokens=28")
    assert sorted(file.name for file in own.iterdir()) == [name.partition("/")[2] for name in files]
    assert (own / "00000001.wav").read_bytes() == held[0] and (own / "00000002.wav").stat().st_mtime_ns == begun
    pseudo_label(folder, "--set", data, "--set", "data.label_tokens=28", "--at-most", "wer=0", code=78)
    assert not own.exists()
    (own / "notes").mkdir(parents=True)
    pseudo_label(folder, "--set", data, "--set", "data.label_tokens=28", "--at-most", "wer=0", code=78)
    assert (own / "notes").is_dir(), "not the command's"
