"""Best students are exported beside training: nobody waits for one, and what happens to it is told."""

import threading
from types import SimpleNamespace

import pytest

from distill_engine.assembly import publishing
from distill_engine.assembly.beside import turns
from distill_engine.assembly.publishing import BestPublisher
from distill_engine.recipe.schema import Recipe
from distill_engine.train.progress import Progress


class Tokenizer:
    """Stands for the tokenizer."""

    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")


@pytest.fixture
def said():
    return []


@pytest.fixture
def go():
    return threading.Event()


@pytest.fixture
def publisher(tiny, tmp_path, said, go, monkeypatch):
    """One whose exports wait to be let go."""
    plain = publishing.publish
    monkeypatch.setattr(publishing, "publish", lambda *arguments: go.wait(30) and plain(*arguments))
    monkeypatch.setattr(publishing, "without_folders", lambda recipe: recipe)
    monkeypatch.setattr(BestPublisher, "_card", lambda *_arguments: "# card\n")
    student = SimpleNamespace(module=SimpleNamespace(model=tiny.model("bart")))
    ready = SimpleNamespace(recipe=SimpleNamespace(student=SimpleNamespace(quantize=None)), tokenizer=Tokenizer())
    return BestPublisher(ready, student, tmp_path, SimpleNamespace(rank=0), said.append)


def test_training_goes_on_meanwhile_and_the_export_is_of_the_weights_then(publisher, tmp_path, go, said):
    publisher.new_best(Progress(3), {})
    assert not (tmp_path / "best").exists() and not publisher._pending.done
    go.set()
    text, exported = publisher.ending("ppl", 4.25)
    assert exported and text == f", best ppl 4.25; {tmp_path / 'best'} has the student of step 3" and said == []
    assert (tmp_path / "best" / "model.safetensors").is_file()
    assert (tmp_path / "student" / "config.json").is_file()


def test_the_next_one_waits_for_it(publisher, tmp_path, go):
    publisher.new_best(Progress(3), {})
    threading.Timer(0.1, go.set).start()
    publisher.new_best(Progress(5), {})
    assert (tmp_path / "best").resolve().name in ("step-00000003", "step-00000005")
    publisher.settle()
    assert (tmp_path / "best").resolve().name == "step-00000005"


def test_one_that_fails_is_told_and_the_end_tells_the_truth(publisher, tmp_path, go, said, monkeypatch):
    go.set()
    monkeypatch.setattr(publishing, "publish", lambda *_arguments: (_ for _ in ()).throw(OSError("no space")))
    publisher.new_best(Progress(3), {})
    text, exported = publisher.ending("ppl", 4.25)
    assert not exported and "no export has succeeded" in text and "--which last" in text
    assert "(step 3) could not be exported: OSError: no space" in said[0]
    monkeypatch.undo()
    monkeypatch.setattr(BestPublisher, "_card", lambda *_arguments: "# card\n")
    publisher.new_best(Progress(4), {})
    publisher.wait()
    monkeypatch.setattr(publishing, "publish", lambda *_arguments: (_ for _ in ()).throw(OSError("no space")))
    publisher.new_best(Progress(6), {})
    text, exported = publisher.ending("ppl", 4.0)
    assert exported and "at step 6, whose export failed" in text and "the student of step 4" in text


def test_without_a_best_value_there_is_nothing_to_say(publisher):
    assert publisher.ending("ppl", None) == ("", True)


def test_a_run_folder_whose_link_became_a_copy_ends_in_order(publisher, tmp_path):
    (tmp_path / "best").mkdir()  # cp -rL
    text, exported = publisher.ending("ppl", 4.25)
    assert exported and "an earlier student" in text


def test_a_best_student_says_what_it_is_to_int8(publisher, go):
    """One from before the switch is no student that was trained for it, whatever its recipe asks for."""
    student = SimpleNamespace(quantize="int8", quantize_steps=2)
    publisher._recipe = SimpleNamespace(student=student, stop=SimpleNamespace(max_steps=10))
    go.set()
    for step, words in (
        (8, "not yet trained for int8, which begins after step 8"),
        (9, "trained for int8 since step 8"),
    ):
        publisher.new_best(Progress(step), {})
        text, exported = publisher.ending("ppl", 4.25)
        assert exported and f"has the student of step {step}. It is {words}" in text


def test_the_switch_to_int8_is_told_at_each_start_and_recorded_once():
    told, records = [], []
    sinks = SimpleNamespace(message=told.append, record=lambda *values: records.append(values))
    recipe = {
        "name": "int8", "data": {"tasks": [{"name": "demo"}]}, "optimizer": {"learning_rate": 1.0},
        "student": {"quantize": "int8", "quantize_steps": 2}, "stop": {"max_steps": 5},
    }  # fmt: skip
    (turn,) = turns(Recipe.model_validate(recipe), sinks)
    progress = Progress()
    for applied in (True, True, True, False, False, True, True):
        progress.count_step(applied)
        turn.after_step(progress, SimpleNamespace(applied=applied), 0.1)
    assert "steps 4 to 5 round as int8 exports do" in told[0]
    ((kind, step, _, values, text),) = records
    assert (kind, step, values) == ("event", 3, {}) and "the best student is chosen anew" in text
    assert not list(turns(Recipe.model_validate(recipe | {"student": {}}), sinks))
