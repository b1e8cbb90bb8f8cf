"""Reading a ParlAI command: its spellings, its mistakes, and what --init-opt brings along."""

import json

import pytest

from distill_engine.interop.parlai.options.command_line import parse_flags, read_command
from distill_engine.interop.parlai.options.errors import ParlaiError


@pytest.mark.parametrize(
    "words",
    [
        "-bs 4 -veps -1 -opt adam",
        "--batchsize 4 --validation-every-n-epochs -1 --optimizer adam",
        "--batchsize=4 -veps=-1 --optimizer=adam",
        "parlai train_model -bs 4 --validation_every_n_epochs -1.0 -opt adam",
        "parlai train -bs 4 -veps -1 --optimizer adam",
        "python -m parlai.scripts.train_model -bs 4 -veps -1 -opt adam",
        "python parlai/scripts/multiprocessing_train.py -bs 8 -bs 4 -veps -1 -opt adam",
        "-bs 4 \\ -veps -1 -opt adam",
    ],
)
def test_one_command_has_many_spellings(words):
    expected = {"batchsize": 4, "validation_every_n_epochs": -1.0, "optimizer": "adam"}
    assert parse_flags(words.split(" ")) == expected


def test_values_may_look_like_anything():
    assert parse_flags(["--delimiter", "  ", "-dt", "train", "-lr", "-.5", "--no-cuda"]) == {
        "delimiter": "  ",
        "datatype": "train",
        "learningrate": -0.5,
        "no_cuda": True,
    }


def test_every_mistake_is_told_at_once():
    with pytest.raises(ParlaiError) as refusal:
        words = ["--batch-size", "4", "-vtmi", "9", "--fp16", "maybe", "stray", "-mf", "-m", "x"]
        parse_flags([*words, "--embeding_size=3"])
    text = str(refusal.value)
    assert "--batch-size is no flag" in text and "Did you mean --batchsize?" in text
    assert "Did you mean -vtim?" in text and "--fp16 is 'maybe'; it takes true or false" in text
    assert "'stray' follows no flag" in text and "-mf has no value" in text and "--embedding-size?" in text


def test_flags_win_over_files_and_files_over_defaults(tmp_path):
    (tmp_path / "a.opt").write_text(json.dumps({"batchsize": 3, "n_heads": 7, "dropout": 0.2}))
    (tmp_path / "b.opt").write_text(json.dumps({"dropout": 0.3}))
    options = read_command(["-bs", "5", "-o", str(tmp_path / "b.opt")], tmp_path / "a.opt")
    names = ("batchsize", "n_heads", "dropout", "ffn_size")
    assert [options[name] for name in names] == [5, 7, 0.3, 300]
    assert options.stated("n_heads") and not options.stated("ffn_size") and options.guessed is None


def test_presets_and_released_models_are_known():
    preset = read_command(["-o", "arch/blenderbot_3B,gen/blenderbot"])
    assert (preset["embedding_size"], preset["beam_size"], preset.guessed) == (2560, 10, None)
    released = read_command(["-o", "data/models/blender/blender_400Mdistill/model.opt"])
    assert (released["embedding_size"], released["delimiter"]) == (1280, "  ") and "400M" in released.guessed
    assert read_command(["-m", "bart"])["n_heads"] == 16


@pytest.mark.parametrize("source", ["nowhere/model.opt", "arch/blenderbot_3B,arch/none"])
def test_an_init_opt_that_is_nowhere_is_refused(source):
    with pytest.raises(ParlaiError, match=r"is no file here, no released model and no preset"):
        read_command(["-o", source])
