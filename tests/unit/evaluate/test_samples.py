"""The degeneration guard with real models: the demo's teacher speaks well, and is then broken in every known way."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from distill_engine.evaluate.generate import own_settings, replies
from distill_engine.evaluate.samples import (
    Prompt,
    Said,
    SampleReplies,
    degenerations,
    recipe_prompts,
    token_repetition,
)
from distill_engine.recipe.load import load_recipe
from distill_engine.setup.prepare import prepare
from distill_engine.telemetry.metrics import describe
from distill_engine.telemetry.sinks import SinkGroup
from distill_engine.values import Tokens

RECIPE = Path(__file__).parents[3] / "recipes" / "demo.yaml"


class Kept:
    """A sink that keeps its records."""

    def __init__(self):
        self.records = []

    def write(self, record):
        self.records.append(record)

    def close(self, status):
        pass

    def of(self, kind):
        return [record for record in self.records if record.kind == kind]


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    small = ["data.tasks.0.train_examples=8", "data.tasks.0.valid_examples=12", "validation.samples=5"]
    return prepare(load_recipe(RECIPE, [*small, f"data.cache_dir={cache}"]), RECIPE)


@pytest.fixture(scope="module")
def speaker(ready):
    return AutoModelForSeq2SeqLM.from_pretrained(ready.teacher_folder).eval()


@pytest.fixture
def model(speaker):
    """A copy that may be broken."""
    return copy.deepcopy(speaker)


def ask(ready, model, replies=None):
    """Values and records of one round of samples after step 7."""
    kept = Kept()
    guard = SampleReplies(ready, recipe_prompts(ready), model, SinkGroup([kept], pytest.fail), replies)
    return guard(7, 3.5), kept


def test_a_model_that_speaks_well_raises_no_alarm(ready, model):
    values, kept = ask(ready, model)
    assert kept.of("event") == []
    (record,) = kept.of("samples")
    assert (record.step, record.seconds, len(record.rows)) == (7, 3.5, 5)
    assert list(record.rows[0]) == ["dataset", "context", "reference", "student"]
    assert values["sample/empty_share"] == 0 and values["sample/unique_share"] > 0.2
    assert 0.5 < values["sample/length_ratio"] < 2
    for name in values:
        assert describe(f"valid/{name}")


def test_the_table_is_the_first_examples_and_the_models_own_replies(ready, model):
    _, kept = ask(ready, model)
    dataset = ready.valid_datasets[0]
    for index, row in enumerate(kept.of("samples")[0].rows):
        example = dataset.example(index)
        context = torch.tensor([example.context_ids.tolist()])
        (alone,) = replies(model, ready.tokenizer, Tokens(context, torch.ones_like(context)), own_settings(model, 32))
        assert row["student"] == alone.text
        assert row["reference"] == ready.tokenizer.decode(example.label_ids, skip_special_tokens=True).strip()
        assert row["context"] in ready.tokenizer.decode(example.context_ids)


def test_the_teachers_replies_stand_beside_the_students(ready, model):
    replies = [f"teacher {number}" for number in range(5)]
    values, kept = ask(ready, model, replies)
    (record,) = kept.of("samples")
    assert list(record.rows[0]) == ["dataset", "context", "reference", "teacher", "student"]
    assert [row["teacher"] for row in record.rows] == replies
    plain, other = ask(ready, model)
    assert [row["student"] for row in record.rows] == [row["student"] for row in other.of("samples")[0].rows]
    assert values.keys() == plain.keys()


def test_nothing_of_the_training_is_touched(ready, model):
    """Also where the settings draw random numbers; and then two rounds draw the same ones."""
    model.generation_config.do_sample, model.generation_config.num_beams = True, 1
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    settings = model.generation_config.to_dict()
    torch.manual_seed(5)
    before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    first, second = (ask(ready, model)[1].of("samples")[0].rows for _ in range(2))
    after = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    assert first == second
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert not model.training and model.generation_config.to_dict() == settings
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and not p.is_inference() for p in model.parameters())


def broken(model, token):
    """Nothing but one token."""
    model.final_logits_bias[0, token] = 1e4
    return model


def free(model):
    """Without the settings that would keep it from repeating itself or from ending at once."""
    config = model.generation_config
    config.no_repeat_ngram_size = config.encoder_no_repeat_ngram_size = 0
    config.min_length = 0
    return model


def test_silence_is_an_alarm(ready, model):
    values, kept = ask(ready, broken(free(model), ready.layout.end_id))
    assert values["sample/empty_share"] == 1
    (alarm,) = kept.of("event")
    assert alarm.text.startswith("ALARM: 5 of 5 sample replies are empty") and "are the same" not in alarm.text


def test_an_endless_word_is_an_alarm(ready, model):
    (word,) = ready.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    values, kept = ask(ready, broken(free(model), word))
    (alarm,) = kept.of("event")
    for said in ("5 of 5 sample replies repeat themselves", "all 5 sample replies are the same", "tokens long"):
        assert said in alarm.text
    assert values["sample/repetition"] > 0.9
    assert values["sample/length"] == ready.recipe.data.label_tokens, "the limit of a model that names none"


def test_a_student_that_cannot_generate_is_an_alarm_and_not_the_end(ready, model):
    model.generation_config.do_sample, model.generation_config.num_beams = True, 1
    model.final_logits_bias.fill_(float("nan"))
    values, kept = ask(ready, model)
    assert values == {} and kept.of("samples") == []
    assert "could not answer the sample prompts" in kept.of("event")[0].text


def test_no_samples_no_guard(ready, model):
    changed = ready.recipe.model_copy(update={"validation": ready.recipe.validation.model_copy(update={"samples": 0})})
    object.__setattr__(other := copy.copy(ready), "recipe", changed)
    assert recipe_prompts(other) == []


def test_a_model_that_answers_several_times_answers_once(ready, model):
    model.generation_config.num_beams = model.generation_config.num_return_sequences = 3
    model.generation_config.return_dict_in_generate = True
    assert len(ask(ready, model)[1].of("samples")[0].rows) == 5


def prompt(ready, number, repeated=0.0):
    return Prompt("demo", ready.valid_datasets[0].example(number), "context", f"reference {number}", repeated)


@pytest.mark.parametrize(
    "said, least, found",
    [
        ([Said("one", 8, 0.0), Said("two", 8, 0.0)], 0, []),
        ([Said("one", 8, 0.0), Said(" ", 8, 0.0)], 0, ["1 of 2 sample replies are empty"]),
        ([Said("one", 8, 0.0), Said("two", 8, 0.31)], 0, ["1 of 2 sample replies repeat themselves"]),
        ([Said("same", 8, 0.0), Said("same", 8, 0.0)], 0, ["all 2 sample replies are the same"]),
        ([Said("one", 60, 0.0), Said("two", 60, 0.0)], 0, ["sample replies are 60 tokens long on average"]),
        ([Said("one", 60, 0.0), Said("two", 60, 0.0)], 20, []),
        ([Said("one", 1, 0.0), Said("two", 1, 0.0)], 0, ["sample replies are 1 tokens long on average"]),
    ],
)
def test_what_is_wrong_is_named(ready, said, least, found):
    answers = degenerations([prompt(ready, 0), prompt(ready, 1)], said, least)
    assert len(answers) == len(found)
    assert all(one.startswith(words) for one, words in zip(answers, found, strict=True))


def test_repetition_that_the_gold_reply_has_too_is_none(ready):
    said = [Said("one", 8, 0.5), Said("two", 8, 0.0)]
    assert degenerations([prompt(ready, 0, 0.4), prompt(ready, 1)], said, 0) == []


def test_an_endless_word_repeats_and_a_sentence_does_not(ready):
    assert token_repetition(ready.tokenizer, "it isn" + "'t" * 20) > 0.7
    assert token_repetition(ready.tokenizer, "i have a white rabbit called button.") == 0
    assert token_repetition(ready.tokenizer, "") == 0
