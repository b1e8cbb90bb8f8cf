"""The teacher's replies to the sample prompts on one rank: made once, kept, made again for another question."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForSeq2SeqLM

from distill_engine.evaluate.generate import own_settings
from distill_engine.evaluate.samples import answers, recipe_prompts
from distill_engine.evaluate.teacher_replies import FILE, TeacherRepliesError, sample_guard, teacher_replies
from distill_engine.recipe.load import load_recipe
from distill_engine.setup.prepare import prepare

RECIPE = Path(__file__).parents[3] / "recipes" / "demo.yaml"


class Alone:
    rank, world_size = 0, 1

    def broadcast(self, value):
        return value


class Second(Alone):
    """A rank that only hears what rank 0 found."""

    rank = 1

    def __init__(self, heard):
        self.heard = heard

    def broadcast(self, value):
        assert value is None
        return self.heard


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    small = ["data.tasks.0.train_examples=8", "data.tasks.0.valid_examples=12", "validation.samples=3"]
    return prepare(load_recipe(RECIPE, [*small, f"data.cache_dir={cache}"]), RECIPE)


@pytest.fixture
def model(ready):
    return AutoModelForSeq2SeqLM.from_pretrained(ready.teacher_folder).eval()


@pytest.fixture
def ask(ready, model, tmp_path, monkeypatch):
    """Replies, whether they were generated, and what was said."""

    def asked(ranks=None, prompts=None):
        calls, said = [], []
        monkeypatch.setattr(model, "generate", lambda *a, **b: calls.append(1) or type(model).generate(model, *a, **b))
        found = teacher_replies(ready, model, prompts or recipe_prompts(ready), tmp_path, ranks or Alone(), said.append)
        return found, bool(calls), said

    return asked


def test_replies_are_the_models_own_and_are_made_once(ready, model, ask, tmp_path):
    prompts = recipe_prompts(ready)
    first, generated, said = ask()
    assert generated and first == [
        one.text for one in answers(ready, model, prompts, own_settings(model, ready.recipe.data.label_tokens))
    ]
    assert "answers 3 sample prompts" in said[0] and "validation.samples: 0" in said[0] and FILE in said[1]
    rows = json.loads((tmp_path / FILE).read_text())["rows"]
    assert [(row["reference"], row["teacher"]) for row in rows] == [
        (prompt.reference, text) for prompt, text in zip(prompts[0], first, strict=True)
    ]
    assert ask() == (first, False, [])


def test_another_question_is_asked_anew(ready, model, ask, tmp_path):
    ask()
    _, generated, _ = ask(prompts=[recipe_prompts(ready)[0][1:]])
    assert generated
    assert ask()[1], "the file held the shorter question's answers"
    model.generation_config.num_beams = 2
    assert ask()[1]
    (tmp_path / FILE).write_text('{"question": ')
    assert ask()[1], "half a file"


def test_other_ranks_take_what_rank_0_has_read(ask, tmp_path):
    assert ask(Second(["a", "b", "c"]))[:2] == (["a", "b", "c"], False)
    _, generated, _ = ask(Second(None))
    assert generated and not (tmp_path / FILE).exists(), "rank 0 alone writes"


def test_refused_settings_cost_the_column_only(model, ask):
    model.generation_config.num_beams, model.generation_config.num_beam_groups = 2, 3
    model.generation_config.bad_words_ids = [[]]
    found, _, said = ask()
    assert found is None and "the teacher's replies are left out: transformers refuses" in said[1]


def test_a_breakdown_says_what_to_do(model, ask):
    model.generation_config.do_sample = True
    model.final_logits_bias.fill_(float("nan"))
    with pytest.raises(TeacherRepliesError, match=r"could not answer the sample prompts: .*validation\.samples to 0"):
        ask()


def test_the_guard_has_the_teachers_replies_only_where_it_can(ready, model, tmp_path):
    rows = []
    sinks = SimpleNamespace(
        message=lambda text: None, record=lambda *args: None, samples=lambda step, seconds, table: rows.extend(table)
    )
    engine = SimpleNamespace(model=model)
    sample_guard(ready, model, engine, tmp_path, Alone(), sinks)(3, 1.0)
    assert len(rows) == 3 and all(row["teacher"] == row["student"] for row in rows), "the student is the teacher"
    sample_guard(ready, model, None, tmp_path, Alone(), sinks)(3, 1.0)
    assert all("teacher" not in row for row in rows[3:]) and len(rows) == 6
    assert sample_guard(ready, model, engine, tmp_path, Second(["a", "b", "c"]), sinks) is None
    none = ready.recipe.validation.model_copy(update={"samples": 0})
    object.__setattr__(other := copy.copy(ready), "recipe", ready.recipe.model_copy(update={"validation": none}))
    assert sample_guard(other, model, engine, tmp_path / "absent", Alone(), sinks) is None
