"""Teachers as they are found in the wild, through the program's own commands: all make the same of a folder.

The right values of all kinds of folders are shown by tests/unit/models/test_loading.py; here are a few of them.
"""

import json
import os
import shutil
from traceback import format_exception

import pytest
import teacher_folders as wild
import torch
from transformers import AutoModelForSeq2SeqLM
from typer.testing import CliRunner

from distill_engine import run as run_module
from distill_engine.cli import app
from distill_engine.cluster.exit_codes import BAD_INPUT

PLACEMENTS = ("zero3", "replica", "node", "offload")


@pytest.fixture
def teacher(make_teacher, tmp_path):
    """(family, whether embeddings are tied) -> a folder that may be changed."""

    def make(family: str = "bart", tied: bool = True):
        return make_teacher(tmp_path / "teacher", family, tie_word_embeddings=tied)

    return make


@pytest.fixture
def recipe(base_recipe, write_recipe):
    """Teacher folder -> recipe of a student that is its copy at full depth, moved by nearly nothing in one step."""

    def make(folder, placement: str = "zero3"):
        content = base_recipe(folder)
        content["teacher"]["placement"] = placement
        content["student"] |= {"encoder_layers": None, "decoder_layers": None, "dropout": 0.0}
        content["optimizer"]["learning_rate"] = 1e-12
        content |= {"stop": {"max_steps": 1}, "validation": {"every_steps": 1}}
        return write_recipe(content)

    return make


@pytest.fixture
def distill(monkeypatch, fp32, tmp_path, capfd):
    """The program in this process, as one rank: (exit code, what it said) of a command. What it trains is refused."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def run(command: str, *words: object) -> tuple[int, str]:
        capfd.readouterr()
        if command == "train":
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            code = run_module.main([*map(str, words), "--run-dir", str(tmp_path / "run"), "--ds_config", str(fp32)])
            return code, "".join(capfd.readouterr())
        done = CliRunner().invoke(app, [command, *map(str, words)])
        assert done.exception is None or isinstance(done.exception, SystemExit), format_exception(done.exception)
        return done.exit_code, done.output

    return run


# family, tied by config.json, what is done to the folder that save_pretrained wrote
SOUND = {
    "untied and pickled": ("blenderbot", False, wild.as_pickle),
    "tied, beside old shards and their index": ("bart", True, wild.FILES["one file beside old shards"]),
}


@pytest.mark.parametrize("case", SOUND)
def test_a_copy_at_full_depth_agrees_in_training_and_evaluate_as_exported(
    teacher, recipe, distill, program, fp32, tmp_path, case
):
    family, tied, change = SOUND[case]
    folder = teacher(family, tied)
    change(folder)
    file = recipe(folder)
    code, said = distill("check", "--recipe", file)
    assert code == 0, said
    run = tmp_path / "run"
    program.run("--recipe", file, "--run-dir", run, "--ds_config", fp32).well()  # DeepSpeed trains once in a process
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = next(one["values"] for one in records if one["kind"] == "train")
    assert trained["train/teacher_agreement"] == 1.0 and trained["train/term/prediction/raw"] < 1e-4
    plain, exported = (AutoModelForSeq2SeqLM.from_pretrained(one).state_dict() for one in (folder, run / "best"))
    assert [name for name in plain if not torch.allclose(plain[name], exported[name], atol=1e-6)] == []
    code, said = distill("evaluate", run, "--json", tmp_path / "out.json", "--partial", tmp_path / "partial")
    assert code == 0, said
    assert '"teacher_acc": 1.0' in json.dumps(json.loads((tmp_path / "out.json").read_text())), said


def drop(*names):
    def change(folder):
        wild.put(folder, {name: value for name, value in wild.tensors_of(folder).items() if name not in names})

    return change


def another_head(folder):
    tensors = wild.tensors_of(folder)
    wild.put(folder, tensors | {wild.HEAD: tensors[wild.SHARED] + 1})


def a_layer_more(folder):
    tensors = wild.tensors_of(folder)
    more = {name.replace("layers.3.", "layers.4."): tensors[name] for name in tensors if ".decoder.layers.3." in name}
    wild.put(folder, tensors | more)
    wild.as_pickle(folder)


# tied by config.json, what is done, what is named
DAMAGED = {
    "no head": (False, drop(wild.HEAD), [wild.HEAD, "missing"]),
    "no encoder embedding": (False, drop(wild.ENCODER), [wild.ENCODER, "missing"]),
    "a tied head that differs": (True, another_head, [wild.HEAD, "tie_word_embeddings"]),
    "a pickled layer too many": (True, a_layer_more, ["model.decoder.layers.4.", "no part of it"]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_not_exactly_the_model_is_refused_by_each_command_with_the_same_words(
    teacher, recipe, distill, tmp_path, case
):
    tied, change, names = DAMAGED[case]
    folder = teacher(tied=tied)
    change(folder)
    code, said = distill("check", "--recipe", recipe(folder))
    assert code == BAD_INPUT, said
    (line,) = [one for one in said.splitlines() if "teacher.path" in one]
    reason = line[line.index("teacher.path") :]
    assert [name for name in names if name not in reason] == [] and str(folder) in reason, reason
    for placement in PLACEMENTS:
        code, said = distill("train", "--recipe", recipe(folder, placement))
        assert code == BAD_INPUT and reason in said and "Traceback" not in said, said
    code, said = distill("evaluate", folder, "--recipe", recipe(folder), "--partial", tmp_path / "partial")
    assert code == BAD_INPUT and [name for name in names if name not in said] == [], said
