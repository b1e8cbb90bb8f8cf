"""Every shipped recipe for a user's own files, as it is but for sizes: 2 steps on 2 ranks, judged, exported."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import soundfile
import tiny_families
import tiny_sentencepiece
import tiny_speaker
import tiny_translators
import tones
import yaml
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, AutoTokenizer

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "recipes" / "demo" / "tokenizer"
DEMO_IDS = {"vocab_size": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def with_demo_tokenizer(name: str, folder: Path, **ids: int) -> Path:
    tiny_families.save(name, folder, **DEMO_IDS, **ids)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    return folder


# recipe -> what writes a teacher of the published one's kind
TEACHERS = {
    "bart_cnn": lambda folder: with_demo_tokenizer("bart-large-cnn", folder, decoder_start_token_id=2),
    "flan_t5_xl": lambda folder: with_demo_tokenizer("flan-t5-small", folder, decoder_start_token_id=0),
    "marian_opus": tiny_translators.save_marian,
    "mbart50": lambda folder: tiny_translators.save("mbart50", folder),
    "nllb_1.3b": lambda folder: tiny_translators.save("nllb", folder),
    "whisper_large_v3": lambda folder: tiny_speaker.save(folder, decoder_layers=3),
}
SIZES = {
    "student.encoder_layers": 2, "student.decoder_layers": 1, "data.context_tokens": 24, "data.label_tokens": 16,
    "batch.per_rank": 4, "schedule.warmup_steps": 1, "validation.every_steps": 2, "validation.generate_examples": 4,
    "stop.max_steps": 2, "logging.every_steps": 1, "logging.wandb.mode": "disabled", "teacher.allow_noise": True,
}  # fmt: skip
OWN_SIZES: dict[str, dict[str, object]] = {
    "bart_cnn": {"losses.decoder_layer_map": "[1]"},  # its layers are written out
    # the encoder is the teacher's, and its decoder's first and last layer are what the recipe is about
    "whisper_large_v3": {"student.encoder_layers": "null", "student.decoder_layers": 2, "data.label_tokens": 24},
}


def kind_of(recipe: Path) -> str:
    kind: str = yaml.safe_load(recipe.read_text())["data"]["datasets"][0].get("kind", "dialogue")
    return kind


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> dict[str, Path]:
    """Lists of tones."""
    folder = tmp_path_factory.mktemp("sounds")
    return {split: tones.tones(folder, count, f"{split}.jsonl") for split, count in (("train", 24), ("valid", 7))}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, Path]:
    """Files with the columns of every recipe for texts."""
    folder, draw = tmp_path_factory.mktemp("rows"), random.Random(4)
    for split, count in (("train", 24), ("valid", 7)):
        lines = []
        for _ in range(count):
            one = draw.randrange(len(tiny_sentencepiece.SOURCES))
            source, target = tiny_sentencepiece.SOURCES[one], tiny_sentencepiece.TARGETS[one]
            pair = {"source": source, "target": target, "article": source, "highlights": target}
            lines.append(json.dumps(pair | {"translation": {"en": source, "de": target, "ro": target}}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return {split: folder / f"{split}.jsonl" for split in ("train", "valid")}


def test_every_recipe_for_files_has_a_teacher_here():
    recipes = (ROOT / "recipes").glob("*.yaml")
    assert set(TEACHERS) == {file.stem for file in recipes if kind_of(file) in ("pairs", "speech")}


@pytest.mark.parametrize("name", TEACHERS)
def test_it_trains_is_judged_by_its_own_metric_and_exported(program, rows, sounds, tmp_path, name):
    recipe, run = ROOT / "recipes" / f"{name}.yaml", tmp_path / "run"
    hears = kind_of(recipe) == "speech"
    values = SIZES | OWN_SIZES.get(name, {}) | {"teacher.path": TEACHERS[name](tmp_path / "teacher")}
    values |= {f"data.datasets.0.{split}": file for split, file in (sounds if hears else rows).items()}
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    given = "--recipe", recipe, "--ds_config", ROOT / "ds_configs" / "zero2_bf16.json", "--run-dir", run
    program.run(*given, *words, ranks=2).well()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (judged,) = [record["values"] for record in records if record["kind"] == "valid"]
    metric = yaml.safe_load(recipe.read_text())["validation"]["metric"]
    assert judged[f"best/{metric}"] == judged[f"valid/{metric}"]
    answer = answer_to_sound(run / "best", sounds["valid"]) if hears else answer_to_text(run / "best")
    assert answer.shape[1] > 2
    if hears:
        same_encoder_and_outer_layers(run / "best", tmp_path / "teacher")


def answer_to_text(student: Path) -> Tensor:
    model, tokenizer = (one.from_pretrained(student) for one in (AutoModelForSeq2SeqLM, AutoTokenizer))
    return model.generate(**tokenizer(tiny_sentencepiece.SOURCES[0], return_tensors="pt"), max_new_tokens=4)


def answer_to_sound(student: Path, manifest: Path) -> Tensor:
    model, extractor = (one.from_pretrained(student) for one in (AutoModelForSpeechSeq2Seq, AutoFeatureExtractor))
    heard, rate = soundfile.read(manifest.parent / "valid0.wav", dtype="float32")
    features = extractor(heard, sampling_rate=rate, return_tensors="pt").input_features.to(model.dtype)
    return model.generate(features, max_new_tokens=4)


def same_encoder_and_outer_layers(student: Path, teacher: Path) -> None:
    """The encoder is the teacher's to the bit; 2 steps leave its first and last layers near where they began."""
    own, theirs = (AutoModelForSpeechSeq2Seq.from_pretrained(one).float().state_dict() for one in (student, teacher))
    encoder = [name for name in own if name.startswith("model.encoder.")]
    assert encoder and all(own[name].equal(theirs[name].bfloat16().float()) for name in encoder)
    name = "model.decoder.layers.{}.fc1.weight"
    for layer, source in ((0, 0), (1, 2)):
        away = (own[name.format(layer)] - theirs[name.format(source)]).abs().max()
        assert 0 < away < 0.01
