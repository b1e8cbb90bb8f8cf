"""Languages of rows of speech: what the decoder reads before each text, in batches, in replies and in what is shown."""

from __future__ import annotations

import json

import pytest
import soundfile
import tiny_speaker
import torch
import yaml
from tones import RATE, listed, tones
from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration
from typer.testing import CliRunner

from distill_engine.cli import app
from distill_engine.data.errors import DataError
from distill_engine.evaluate.generate import GenerationError, generate_ids, own_settings, row_prompts
from distill_engine.evaluate.set import EvaluationSet
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.problem import RecipeError
from distill_engine.setup.prepare import Prepared, prepare

SAID = [None, "en", "de", "de"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    rows = [json.loads(line) for line in tones(folder, len(SAID)).read_text().splitlines()]
    listed(folder, "train.jsonl", [row | {"language": said} for row, said in zip(rows, SAID, strict=True)])
    tiny_speaker.save(folder / "teacher", language=None)
    return folder


def prepared(folder, *entries: dict) -> Prepared:
    tasks = [{"kind": "speech", "name": f"set{n}", "train": str(folder / "train.jsonl"), **entry}
             for n, entry in enumerate(entries)]  # fmt: skip
    content = {
        "name": "rows", "teacher": {"path": str(folder / "teacher")}, "student": {"decoder_layers": 1},
        "data": {"datasets": tasks, "label_tokens": 24, "cache_dir": str(folder / "cache")},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2}, "validation": {"patience": None},
        "stop": {"max_steps": 1},
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return prepare(load_recipe(file), file)


BY_ROWS = {"language": "language", "target_language": "en"}


def codes(ready: Prepared) -> list[str]:
    """Of the languages that the decoder reads, example by example of all datasets."""
    examples = EvaluationSet(ready.train_datasets, ready.layout, ready.tokenizer, 3)
    read = {}
    for number in range(len(examples)):
        batch = examples.batch(number)
        assert (batch.labels[:, :3] == -100).all()
        languages = ready.tokenizer.convert_ids_to_tokens(batch.decoder_input_ids[:, 1].tolist())
        read.update(zip(examples.ids(number), languages, strict=True))
    return [read[place].strip("<|>") for place in sorted(read)]


def test_each_text_begins_with_its_rows_language_or_the_datasets(folder):
    one = prepared(folder, BY_ROWS)
    assert codes(one) == ["en", "en", "de", "de"] and "en" in one.generation.values["language"]
    assert codes(prepared(folder, {"target_language": "de"})) == ["de"] * 4  # the column is not asked for
    two = prepared(folder, BY_ROWS | {"target_language": "de"}, {"target_language": "en"})
    assert codes(two) == ["de", "en", "de", "de", *["en"] * 4]
    assert "de" in two.generation.values["language"]  # the first dataset's is the run's
    found = {EvaluationSet(ready.train_datasets, ready.layout, ready.tokenizer, 3).fingerprint()
             for ready in (one, prepared(folder, BY_ROWS | {"target_language": "de"}))}  # fmt: skip
    assert len(found) == 2


def test_replies_are_those_of_plain_transformers_in_each_rows_language(folder):
    ready = prepared(folder, BY_ROWS)
    model = WhisperForConditionalGeneration.from_pretrained(folder / "teacher").eval()
    examples = EvaluationSet(ready.train_datasets, ready.layout, ready.tokenizer, len(SAID))
    batch, order = examples.batch(0), [index for _, index in examples.ids(0)]
    extractor = AutoFeatureExtractor.from_pretrained(folder / "teacher")
    heard = [soundfile.read(folder / f"train{number}.wav", dtype="float32")[0] for number in order]
    features = extractor(heard, sampling_rate=RATE, return_tensors="pt").input_features
    languages = [SAID[number] or "en" for number in order]
    read = []
    model.model.decoder.register_forward_pre_hook(
        lambda _module, _args, given: read.append(given["input_ids"].tolist()) if given else None, with_kwargs=True
    )
    for beams in (1, 2):
        settings = own_settings(model, 8, {**ready.told, "max_new_tokens": 8, "num_beams": beams})
        ids = generate_ids(model, batch.inputs, settings, row_prompts(batch, ready.layout))
        assert torch.equal(ids, model.generate(features, language=languages, max_new_tokens=8, num_beams=beams))
    assert read[0] == batch.decoder_input_ids[:, :4].tolist()
    # settings that are asked for hold for the rows that name nothing else
    read.clear()
    asked = own_settings(model, 1, {"max_new_tokens": 1, "language": "german", "task": "translate"})
    generate_ids(model, batch.inputs, asked, row_prompts(batch, ready.layout))
    german, translate = map(ready.tokenizer.convert_tokens_to_ids, ("<|de|>", "<|translate|>"))
    assert [row[1:3] for row in read[0]] == [[german, translate]] * 4
    del model.generation_config.lang_to_id["<|de|>"]
    with pytest.raises(GenerationError, match=r"a language that the model's generation settings do not name"):
        generate_ids(model, batch.inputs, own_settings(model, 8, ready.told), row_prompts(batch, ready.layout))


def test_what_is_read_before_a_text_is_shown(folder):
    prepared(folder, BY_ROWS)
    done = CliRunner().invoke(app, ["data", "show", "--recipe", str(folder / "recipe.yaml"), "--examples", "4"])
    assert done.exit_code == 0, done.output
    read = [line for line in done.stdout.splitlines() if line.startswith("<|startoftranscript|>")]
    assert [line.split("|><|")[1] for line in read] == ["en", "en", "de", "de"]


def test_what_cannot_be_asked_for_is_refused(folder):
    with pytest.raises(RecipeError, match="the data's `target_language`"):  # rows that name none need one
        prepared(folder, {"language": "language"})
    listed(folder, "odd.jsonl", [json.loads(line) | {"language": "dee"}
                                 for line in (folder / "train.jsonl").read_text().splitlines()[:1]])  # fmt: skip
    with pytest.raises(DataError, match=r"odd.jsonl, line 1: the language is 'dee', which(.|\n)*Did you mean de"):
        prepared(folder, BY_ROWS | {"train": str(folder / "odd.jsonl")})
    english = folder / "english"
    tiny_speaker.save(english)
    model = WhisperForConditionalGeneration.from_pretrained(english)
    for name in ("lang_to_id", "task_to_id"):
        delattr(model.generation_config, name)
    model.generation_config.update(is_multilingual=False, language=None, task=None)
    model.save_pretrained(english)
    assert AutoTokenizer.from_pretrained(english).convert_tokens_to_ids("<|de|>") is not None
    (folder / "teacher").rename(folder / "many")
    english.rename(folder / "teacher")
    with pytest.raises(RecipeError, match=r"data.datasets.0.language(.|\n)*knows English alone"):
        prepared(folder, {"language": "language"})
