"""Students in other programs' forms: they say what the PyTorch student says, or are refused by name."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tiny_models import VOCABULARY, save_teacher
from transformers import AutoConfig, PreTrainedTokenizerFast
from typer.testing import CliRunner

from distill_engine.cli import app
from distill_engine.cluster.exit_codes import BAD_INPUT
from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.evaluate.agreement import agreement
from distill_engine.evaluate.measure import load_model
from distill_engine.export.convert import export_student, open_export
from distill_engine.export.protocol import RECORD, TargetError
from distill_engine.registry import RegistryError, load

LIBRARIES = {"onnx": ("onnx", "onnxruntime"), "ctranslate2": ("ctranslate2",)}
FAMILIES = ("blenderbot", "bart")


def needs(name: str) -> None:
    for library in LIBRARIES[name]:
        pytest.importorskip(library, reason=f"the extra `{name}` is not installed")


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> dict[str, Path]:
    """A random model of each family with a tokenizer of as many words."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{n}": n for n in range(4, VOCABULARY)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = {}
    for family in FAMILIES:
        made[family] = save_teacher(tmp_path_factory.mktemp("students") / family, family)
        PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(made[family])
    return made


def compared(student: Path, other) -> dict:
    torch.manual_seed(0)
    contexts = [torch.randint(5, 90, (1, length)) for length in (3, 9, 5, 12, 7)]
    model = load_model(student, torch.device("cpu"))
    found = agreement(model, other, load_tokenizer(str(student)), contexts, [], new_tokens=8)
    return {"agreement": found.share}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LIBRARIES)
def test_every_reply_is_the_students(students, tmp_path, name, family):
    needs(name)
    assert export_student(students[family], tmp_path / "out", name, None, compared) is None
    told = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (told["format"], told["quantize"], told["agreement"]) == (name, None, 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    opened = open_export(tmp_path / "out")
    beams = {"num_beams": 3, "max_new_tokens": 6, "suppress_tokens": [1]}
    ids = torch.tensor([[7, 8, 9, 2]])
    mine = load_model(students[family], torch.device("cpu")).generate(ids, attention_mask=torch.ones_like(ids), **beams)
    assert (
        opened.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **beams).tolist()[0][:6]
        == mine.tolist()[0][:6]
    )


@pytest.mark.parametrize("name", LIBRARIES)
def test_int8_is_smaller_and_the_command_tells_how_alike_it_is(students, tmp_path, name):
    needs(name)
    run = CliRunner().invoke
    told = {}
    for kind in ("fp32", "int8"):
        words = ["export", str(students["blenderbot"]), str(tmp_path / kind), "--format", name, "--prompts", "4"]
        done = run(app, [*words, *(["--quantize", kind] if kind == "int8" else [])])
        assert done.exit_code == 0, done.output + done.stderr
        assert "of 4 replies (random prompts) are the PyTorch student's" in done.stderr
        told[kind] = json.loads((tmp_path / kind / RECORD).read_text())
    assert told["int8"]["mib_on_disk"] < told["fp32"]["mib_on_disk"] and told["fp32"]["agreement"] == 1.0


def test_an_export_that_says_something_else_does_not_count(students, tmp_path, monkeypatch):
    needs("onnx")
    monkeypatch.setattr("distill_engine.evaluate.agreement.said_ids", lambda model, *_: [[5 + hasattr(model, "_past")]])
    words = ["export", str(students["bart"]), str(tmp_path / "out"), "--format", "onnx", "--prompts", "1"]
    refused = CliRunner().invoke(app, [*words, "--min-agreement", "0.5"])
    assert refused.exit_code == BAD_INPUT and "0.0% of the replies" in refused.stderr
    assert "PyTorch 'w5', here 'w6'" in refused.stderr and list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(students, tmp_path, monkeypatch):
    def refused(
        kind: type[Exception], said: str, name: str, quantize: str | None = None, source: Path = students["bart"]
    ):
        with pytest.raises(kind, match=said):
            export_student(source, tmp_path / "out", name, quantize, lambda *_: {})
        assert list(tmp_path.iterdir()) == []

    refused(RegistryError, "'onx' is none of the exports", "onx")
    refused(TargetError, "hf has no such quantisation", "hf", "int8")
    refused(TargetError, "It knows int8", "onnx", "float16")
    refused(ValueError, "no exported student", "onnx", source=tmp_path)
    for name, (library, *_) in LIBRARIES.items():
        with monkeypatch.context() as without:
            without.setitem(sys.modules, library, None)
            refused(TargetError, rf"{library} is not installed.*distill-engine\[{name}\]", name)
    for name in LIBRARIES:
        needs(name)
        with pytest.raises(TargetError, match="is no "):
            load("exports", name).open(tmp_path)


def test_families_and_arithmetic_that_a_target_lacks_are_named(students, tmp_path, monkeypatch):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="the extra `ctranslate2` is not installed")
    target = load("exports", "ctranslate2")
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda device: {"float32", "int8"})
    with pytest.raises(TargetError, match=r"--quantize bfloat16: this machine's .* has no such arithmetic"):
        target.write(students["bart"], tmp_path / "out", "bfloat16", None)
    other = tmp_path / "small"
    shutil.copytree(students["bart"], other)
    config = AutoConfig.for_model(
        "blenderbot-small", **json.loads((other / "config.json").read_text()) | {"model_type": "blenderbot-small"}
    )
    config.save_pretrained(other)
    with pytest.raises(TargetError, match="ctranslate2 does not know blenderbot-small models"):
        target.write(other, tmp_path / "out", None, None)


def test_a_copy_for_transformers_and_the_table_of_the_docs(students, tmp_path, root):
    assert export_student(students["bart"], tmp_path / "hf", "hf", None, lambda *_: {}) is None
    assert open_export(tmp_path / "hf") is None and (tmp_path / "hf" / "model.safetensors").is_file()
    printed = CliRunner().invoke(app, ["list", "exports", "--markdown"]).stdout
    assert printed in (root / "docs" / "exports.md").read_text(encoding="utf-8")
