"""Model files are data: what would run code is refused, and not run."""

import os
import pickle
import sys
import types

import pytest
import torch

from distill_engine.interop.parlai.checkpoint import load_options, load_state
from distill_engine.interop.parlai.importer import import_parlai
from distill_engine.interop.parlai.options.errors import ParlaiError
from distill_engine.interop.parlai.source import SourceFiles


class Hostile:
    """Pickles as a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def foreign(monkeypatch):
    """Makes a class that lives in a module which is gone when the file is read."""
    made = []

    def make(module, name, **body):
        parts = module.split(".")
        for depth in range(len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[: depth + 1]), types.ModuleType(parts[depth]))
        kind = type(name, body.pop("bases", ()), {"__module__": module, "__qualname__": name, **body})
        setattr(sys.modules[module], name, kind)
        made.append(module.split(".")[0])
        return kind

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] in made]:
            monkeypatch.delitem(sys.modules, name)

    make.forget = forget
    return make


def opt_class(foreign):
    """ParlAI's Opt, as it pickles itself: empty, then a state of history, copies and values."""

    def reduce(self):
        return type(self), (), ([("x", 1, "somewhere")], [], dict(self))

    return foreign("parlai.core.opt", "Opt", bases=(dict,), __reduce__=reduce)


@pytest.mark.parametrize("place", ["beside the weights", "among the weights"])
def test_a_hostile_pickle_is_refused_and_not_executed(changed, tmp_path, place):
    trap = tmp_path / "executed"
    hostile = Hostile(f"touch {trap}")
    if place == "beside the weights":
        model = changed(extra={"optimizer": hostile})
    else:
        model = changed(state=lambda state: state | {"START": hostile})
    with pytest.raises(ParlaiError, match=r"posix\.system.*--allow-pickle"):
        import_parlai(SourceFiles(model), tmp_path / "hf")
    assert not trap.exists() and not (tmp_path / "hf").exists()


def test_a_hostile_opt_is_refused_and_not_executed(changed, tmp_path):
    trap, model = tmp_path / "executed", changed()
    model.with_name("model.opt").write_bytes(pickle.dumps(Hostile(f"touch {trap}"), protocol=4))
    with pytest.raises(ParlaiError, match=r"model\.opt is not JSON.*--allow-pickle"):
        import_parlai(SourceFiles(model), tmp_path / "hf")
    assert not trap.exists()


def test_a_hostile_file_in_the_old_format_is_refused_too(tmp_path):
    trap = tmp_path / "executed"
    saved = {"model": {"a": torch.ones(1)}, "x": Hostile(f"touch {trap}")}
    torch.save(saved, tmp_path / "model", _use_new_zipfile_serialization=False)
    with pytest.raises(ParlaiError, match="--allow-pickle"):
        load_state(tmp_path / "model")
    assert not trap.exists()


def test_parlais_own_options_in_a_file_are_harmless(changed, foreign):
    model = changed(extra={"opt": opt_class(foreign)(model="x"), "lr_scheduler": {"best": 1.5}})
    foreign.forget()
    assert "embeddings.weight" in load_state(model)


def test_other_classes_need_the_flag_and_the_flag_says_what_it_risks(changed, foreign, caplog):
    scaler = foreign("apex.fp16_utils.loss_scaler", "DynamicLossScaler")()
    scaler.scale = 2.0
    model = changed(extra={"scaler": scaler, "opt": opt_class(foreign)(model="x")})
    foreign.forget()
    with pytest.raises(ParlaiError, match=r"apex\.fp16_utils"):
        load_state(model)
    with caplog.at_level("WARNING"):
        state = load_state(model, allow_pickle=True)
    assert "embeddings.weight" in state and "runs now, with your rights" in caplog.text


def test_pickled_options_need_the_flag(tmp_path, foreign):
    path = tmp_path / "model.opt"
    path.write_bytes(pickle.dumps(opt_class(foreign)(n_layers=3), protocol=4))
    foreign.forget()
    with pytest.raises(ParlaiError, match="pickled"):
        load_options(path)
    assert load_options(path, allow_pickle=True) == {"n_layers": 3}


def test_damage_is_told_apart_from_danger(changed):
    model = changed()
    model.write_bytes(model.read_bytes()[:1000])
    for allowed in (False, True):
        with pytest.raises(ParlaiError, match="copy it again"):
            load_state(model, allowed)
