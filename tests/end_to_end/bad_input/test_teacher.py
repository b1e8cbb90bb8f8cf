"""Teachers that do not fit the recipe, or whose files are damaged: exit code 78 with the reason."""

import os

import pytest
from transformers import AutoTokenizer


def setting(path, value):
    return lambda case: case.set(path, value)


def truncate(case):
    file = case.own_teacher() / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def random_student(damage):
    """The teacher's files are then first read by the teacher's engine, not by the copying of layers."""
    return lambda case: (damage(case), case.set("student.init", "random"))


def other_tokenizer(case):
    folder = case.own_teacher()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{n}>" for n in range(8)])
    case.set("data.tokenizer", str(case.folder / "tokenizer"))
    tokenizer.save_pretrained(case.folder / "tokenizer")
    case.lines("text:hello\tlabels:<extra7>\n")


TEACHER = {
    "head counts that differ": (
        lambda case: (case.set("student.heads", 2), case.set("losses.weights.self_attention", 4.0)),
        ["losses.weights.self_attention", "4 heads", "student 2", "head by head"],
    ),
    "student deeper than the teacher": (
        setting("student.decoder_layers", 5),
        ["student.decoder_layers", "is 5", "4 layers"],
    ),
    "narrower student of copied layers": (setting("student.width", 16), ["student.width", "teacher_layers"]),
    "width that the teacher's heads do not divide": (
        lambda case: (case.set("student.width", 30), case.set("student.init", "random")),
        ["student.width", "30", "4 heads"],
    ),
    "another family": (setting("student.family", "bart"), ["student.family", "bart", "blenderbot"]),
    "contexts beyond the teacher's position table": (
        setting("data.context_tokens", 65),
        ["data.context_tokens", "65", "64 rows"],
    ),
    "labels that BART's start tokens push beyond it": (
        lambda case: (case.own_teacher("bart"), case.set("data.label_tokens", 64)),
        ["data.label_tokens", "64 rows", "65"],
    ),
    "ids above the embedding table": (other_tokenizer, ["data.tokenizer", "embedding rows"]),
    "vocabulary of another size": (
        lambda case: case.change_config(vocab_size=50265),
        ["data.tokenizer", "50265 embedding rows"],
    ),
    "special tokens of other ids": (
        lambda case: case.change_config(bos_token_id=2, eos_token_id=1),
        ["data.tokenizer", "bos_token_id", "eos_token_id", "share their special tokens"],
    ),
    "model of an unknown family": (
        lambda case: case.change_config(model_type="gpt2"),
        ["'gpt2'", "Teachers can be: blenderbot"],
    ),
    "missing teacher folder": (
        setting("teacher.path", "teachers/nowhere"),
        ["teacher.path", "teachers/nowhere", "Correct the path"],
    ),
    "teacher folder without config": (
        lambda case: (case.own_teacher() / "config.json").unlink(),
        ["teacher.path", "config.json cannot be read"],
    ),
    "teacher config that is no JSON": (
        lambda case: (case.own_teacher() / "config.json").write_text("{"),
        ["teacher.path", "config.json cannot be read"],
    ),
    "teacher config that is no object": (
        lambda case: (case.own_teacher() / "config.json").write_text("[1]"),
        ["teacher.path", "config.json"],
    ),
    "missing tokenizer": (setting("data.tokenizer", "no/tokenizer"), ["no/tokenizer", "tokenizer"]),
    "teacher without weights": (
        lambda case: (case.own_teacher() / "model.safetensors").unlink(),
        ["no model.safetensors"],
    ),
    "teacher without weights, random student": (
        random_student(lambda case: (case.own_teacher() / "model.safetensors").unlink()),
        ["no model.safetensors"],
    ),
    "truncated weights": (truncate, ["model.safetensors cannot be read", "incomplete"]),
    "truncated weights, random student": (random_student(truncate), ["model.safetensors cannot be read", "incomplete"]),
    "missing tensor": (
        lambda case: case.drop_tensor("model.decoder.layers.1.fc1.weight"),  # one that is copied
        ["model.decoder.layers.1.fc1.weight"],
    ),
}

ROWS = [
    pytest.param(make, says, id=f"{group}: {name}")
    for group, rows in {"teacher": TEACHER}.items()
    for name, (make, says) in rows.items()
]


@pytest.mark.parametrize(("make", "says"), ROWS)
def test_is_refused_with_the_reason(refused, make, says):
    refused(make, says)


def test_a_hub_that_cannot_be_reached_is_told_from_a_wrong_name(case, call, complaints, monkeypatch):
    """A node without network, and a model that was never downloaded there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # its pauses between tries
    case.set("teacher.path", "somebody/some-model")
    complaints(*call(), ["teacher.path", "'somebody/some-model'", "Hub did not give it", "network"])
