"""Students in other programs' forms: they say what the PyTorch student says, or are refused by name."""

import json
import sys
from functools import cache
from pathlib import Path

import pytest
import tiny_families
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from distill_engine.cli import app
from distill_engine.cluster.exit_codes import BAD_INPUT
from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.evaluate.agreement import Prompts, agreement
from distill_engine.evaluate.measure import load_model
from distill_engine.export.convert import export_student
from distill_engine.export.protocol import RECORD, TargetError
from distill_engine.registry import RegistryError, load

LIBRARIES = {"onnx": ("onnx", "onnxruntime"), "ctranslate2": ("ctranslate2",)}
FAMILIES = tuple(tiny_families.PUBLISHED)
T5_LIKE = ("t5-small", "flan-t5-small", "mt5-small", "umt5-small")
LACKS = {
    "onnx": dict.fromkeys(T5_LIKE, "onnx does not know .* models: .* biases of relative positions")
    | {"whisper-large-v3": "onnx has no form of models whose inputs are audio"},
    "ctranslate2": {
        "whisper-large-v3": "ctranslate2 has no form of models whose inputs are audio",
        "blenderbot_small-90M": "does not know blenderbot-small models",
        "opus-mt with two vocabularies": "cannot convert .*vocabulary",
    },
}
OTHERWISE = {
    ("ctranslate2", "nllb-200-distilled-600M"): "CTranslate2 counts positions as with padding token 1; this one's is 0",
    (
        "ctranslate2",
        "opus-mt-en-de",
    ): "CTranslate2 starts at a zero embedding, as published models do",
}


def needs(name: str) -> None:
    for library in LIBRARIES[name]:
        pytest.importorskip(library, reason=f"the extra `{name}` is not installed")


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Folder of a random model of each family, with a tokenizer of as many words; made when asked for."""
    folder = tmp_path_factory.mktemp("students")

    @cache
    def made(name: str) -> Path:
        special = tiny_families.special(name)
        named = {special.pad: "<pad>", special.end: "</s>", 3: "<unk>"}
        if special.start not in (None, *named):
            named[special.start] = "<s>"
        vocabulary = {named.get(number, f"w{number}"): number for number in range(tiny_families.VOCABULARY)}
        words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
        words.pre_tokenizer = Whitespace()
        begin = {"bos_token": "<s>"} if "<s>" in vocabulary else {}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **begin
        )
        target = tiny_families.save(name, folder / name.replace(" ", "-"))
        tokenizer.save_pretrained(target)
        settings = target / "generation_config.json"  # greedily: programs differ in when they end a beam search
        greedy = {"num_beams": 1, "no_repeat_ngram_size": 0, "min_length": 0}
        settings.write_text(json.dumps(json.loads(settings.read_text()) | greedy))
        return target

    return made


def compared(student: Path, other) -> dict:
    torch.manual_seed(0)
    contexts = [torch.randint(5, 60, (1, length)) for length in (3, 9, 5, 12, 7)]
    model = load_model(student, torch.device("cpu"))
    found = agreement(model, other, load_tokenizer(str(student)), Prompts(contexts, [], "random"), new_tokens=8)
    return {"agreement": found.share}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LIBRARIES)
def test_every_reply_is_the_students_or_the_family_is_refused(students, tmp_path, name, family):
    needs(name)
    if (name, family) in OTHERWISE:
        pytest.skip(OTHERWISE[name, family])
    lack = LACKS[name].get(family)
    if lack is not None:
        with pytest.raises(TargetError, match=lack):
            export_student(students(family), tmp_path / "out", name, None, compared)
        assert list(tmp_path.iterdir()) == []
        return
    assert export_student(students(family), tmp_path / "out", name, None, compared) is None
    told = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (told["format"], told["quantize"], told["agreement"]) == (name, None, 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load("exports", name).open(tmp_path / "out") is not None


@pytest.mark.parametrize("name", LIBRARIES)
def test_int8_is_smaller_and_the_command_tells_how_alike_it_is(students, tmp_path, name):
    needs(name)
    run, student = CliRunner().invoke, students("blenderbot-400M-distill")
    told = {}
    for kind in ("fp32", "int8"):
        words = ["export", str(student), str(tmp_path / kind), "--format", name, "--prompts", "4"]
        done = run(app, [*words, *(["--quantize", kind] if kind == "int8" else [])])
        assert done.exit_code == 0, done.output + done.stderr
        assert "of 4 replies (random prompts) are the PyTorch student's" in done.stderr
        told[kind] = json.loads((tmp_path / kind / RECORD).read_text())
    assert told["fp32"]["agreement"] == 1.0 and told["int8"]["quantize"] == "int8"
    if name == "onnx":  # of models this small the names of the graph are the larger part
        assert b"MatMulInteger" in (tmp_path / "int8" / "decoder.onnx").read_bytes()
    else:
        assert told["int8"]["mib_on_disk"] < told["fp32"]["mib_on_disk"]


def test_an_export_that_says_something_else_does_not_count(students, tmp_path, monkeypatch):
    needs("onnx")
    monkeypatch.setattr(
        "distill_engine.evaluate.agreement.said_ids", lambda model, *_: [[5 + hasattr(model, "mib_on_disk")]]
    )
    words = ["export", str(students("bart-large-cnn")), str(tmp_path / "out"), "--format", "onnx", "--prompts", "1"]
    refused = CliRunner().invoke(app, [*words, "--min-agreement", "0.5"])
    assert refused.exit_code == BAD_INPUT and "0.0% of the replies" in refused.stderr
    assert "PyTorch 'w5', here 'w6'" in refused.stderr and list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(students, tmp_path, monkeypatch):
    bart = students("bart-large-cnn")

    def refused(kind: type[Exception], said: str, name: str, quantize: str | None = None, source: Path = bart):
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


def test_arithmetic_that_the_machine_lacks_is_named(students, tmp_path, monkeypatch):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="the extra `ctranslate2` is not installed")
    target = load("exports", "ctranslate2")
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda device: {"float32", "int8"})
    with pytest.raises(TargetError, match=r"--quantize bfloat16: this machine's .* has no such arithmetic"):
        target.write(students("bart-large-cnn"), tmp_path / "out", "bfloat16", None)


def test_a_copy_for_transformers_and_the_table_of_the_docs(students, tmp_path, root):
    assert export_student(students("bart-large-cnn"), tmp_path / "hf", "hf", None, lambda *_: {}) is None
    assert not (tmp_path / "hf" / RECORD).exists() and (tmp_path / "hf" / "model.safetensors").is_file()
    printed = CliRunner().invoke(app, ["list", "exports", "--markdown"]).stdout
    assert printed in (root / "docs" / "exports.md").read_text(encoding="utf-8")
