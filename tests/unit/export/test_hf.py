"""Exported folders: complete, loadable by others, verified before they count."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from distill_engine.export.hf import ExportError, host_model, probe_of, verify_folder, write_student
from distill_engine.models.adapter import adapt
from distill_engine.models.capture import ATTENTION_NAME
from distill_engine.values import FeatureRequest, Stack

FRESH_PROCESS = """
import json, sys
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
shown = {}
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    words = tokenizer("w5 w6 w7", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits = model(**words, decoder_input_ids=torch.tensor([[2, 1, 9]])).logits
    reply = model.generate(**words, max_new_tokens=5)
    shown[folder] = {"logits": logits.tolist(), "reply": reply.tolist(), "text": tokenizer.batch_decode(reply)}
shown["foreign"] = [name for name in sys.modules if name.startswith(("distill_engine", "deepspeed"))]
print(json.dumps(shown))
"""


@pytest.fixture(scope="module")
def tokenizer(tiny):
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, tiny.VOCABULARY)}
    raw = Tokenizer(WordLevel(words, unk_token="w3"))
    raw.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w3"
    )


@pytest.fixture
def student(family, tiny):
    """A student as training leaves it: adapted, used with capture, in training mode."""
    model = tiny.model(family, dropout=0.4)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=1, bos_token_id=1, eos_token_id=2, pad_token_id=0, num_beams=3, max_length=17
    )
    adapt(model)(tiny.batch(family), FeatureRequest(hidden={Stack.ENCODER: (0,)}))
    return model.train()


def write(student, tokenizer, folder: Path) -> Path:
    write_student(student, tokenizer, folder, "# card\n", probe_of(student))
    return folder


def test_a_fresh_process_with_only_transformers_loads_and_generates(tiny, tokenizer, tmp_path):
    models = {name: tiny.model(name) for name in ("blenderbot", "bart")}
    for name, model in models.items():
        adapt(model)
        write(model, tokenizer, tmp_path / name)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, *(str(tmp_path / name) for name in models)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["foreign"] == []
    words = torch.tensor([[5, 6, 7]])
    for name, model in models.items():
        theirs = shown[str(tmp_path / name)]
        with torch.no_grad():
            ours = model(input_ids=words, decoder_input_ids=torch.tensor([[2, 1, 9]])).logits
        assert torch.allclose(torch.tensor(theirs["logits"]), ours, atol=1e-6)
        assert theirs["reply"] == model.generate(words, max_new_tokens=5).tolist()
        assert len(theirs["text"]) == 1


def test_what_a_folder_holds(student, tokenizer, tmp_path, family):
    folder = write(student, tokenizer, tmp_path / "out")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt"))]
    for file in folder.glob("*.json"):
        assert ATTENTION_NAME not in file.read_text(), file.name
    assert (folder / "README.md").read_text() == "# card\n"
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.num_beams, generation.max_length) == (3, 17)
    again = AutoTokenizer.from_pretrained(folder)
    assert again("w5 w9").input_ids == [5, 9] and again.pad_token_id == 0
    assert not [name for name in load_file(folder / "model.safetensors") if "projection" in name or "adapter" in name]
    assert student.training  # goes on training as before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_those_that_were_validated(student, tokenizer, tmp_path, dtype):
    folder = write(student.to(dtype), tokenizer, tmp_path / "out")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert loaded.dtype == dtype
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def change_a_weight(tensors):
    tensors["model.decoder.layers.0.fc1.weight"][0, 0] += 50.0


def lose_a_tensor(tensors):
    del tensors["model.decoder.layers.1.fc2.weight"]


def add_a_tensor(tensors):
    tensors["hidden_projection.weight"] = torch.zeros(2)


def spoil_with_nan(tensors):
    tensors["model.shared.weight"][7] = torch.nan


TAMPERINGS = {
    change_a_weight: r"tensors differ .*: model\.decoder\.layers\.0\.fc1\.weight",
    lose_a_tensor: r"1 tensor is missing .*\(model\.decoder\.layers\.1\.fc2\.weight\)",
    add_a_tensor: r"1 tensor is no part of it .*\(hidden_projection\.weight\)",
    spoil_with_nan: r"tensors differ \(or hold NaN\)",
}


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda f: f.__name__)
def test_a_folder_that_holds_another_model_is_removed(student, tokenizer, tmp_path, monkeypatch, tamper):
    save = student.save_pretrained

    def save_badly(folder):
        save(folder)
        tensors = load_file(folder / "model.safetensors")
        tamper(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    refuses(student, tokenizer, tmp_path, monkeypatch, save_badly, TAMPERINGS[tamper])


def refuses(student, tokenizer, tmp_path, monkeypatch, save_badly, message: str) -> None:
    monkeypatch.setattr(student, "save_pretrained", save_badly)
    with pytest.raises(ExportError, match=message):
        write(student, tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [] and student.training


def test_a_configuration_that_means_another_model_shows_in_the_logits(student, tokenizer, tmp_path, monkeypatch):
    save = student.save_pretrained

    def save_badly(folder):
        save(folder)
        file = folder / "config.json"
        file.write_text(file.read_text().replace('"gelu"', '"relu"'))

    refuses(student, tokenizer, tmp_path, monkeypatch, save_badly, "reloaded logits differ from the live model's by")


def test_a_file_cut_short_is_found(student, tokenizer, tmp_path, monkeypatch):
    save = student.save_pretrained

    def save_half(folder):
        save(folder)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-50])

    refuses(student, tokenizer, tmp_path, monkeypatch, save_half, "does not load with transformers")


def test_a_full_disk_is_an_os_error_and_leaves_nothing(student, tokenizer, tmp_path):
    """A limit on the size of files stands for the disk: it stops safetensors' own writer half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OSError, match="the weights cannot be written"):
            write(student, tokenizer, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_copy_in_host_memory_is_the_same_model_and_shares_nothing(student, tokenizer, tmp_path):
    expected = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    twin = host_model(student)
    with torch.no_grad():
        for weight in student.parameters():
            weight.zero_()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in twin.state_dict().items())
    assert len(list(twin.parameters())) == len(list(student.parameters())), "what is tied stays tied"
    assert not twin.training and student.training
    folder = write(twin, tokenizer, tmp_path / "out")
    assert GenerationConfig.from_pretrained(folder).num_beams == 3


def test_an_unfinished_folder_is_replaced(student, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale.bin").write_text("old")
    write(student, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / "stale.bin").exists()


def test_verify_folder(student, tokenizer, tmp_path):
    folder = write(student, tokenizer, tmp_path / "out")
    verify_folder(folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    spoil_with_nan(tensors)
    tensors["model.shared.weight"][:] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ExportError, match="logits are not finite"):
        verify_folder(folder)
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ExportError, match="does not load"):
        verify_folder(folder)
    with pytest.raises(ExportError, match="does not load"):
        verify_folder(tmp_path / "absent")


def test_what_makes_inputs_of_sounds_goes_with_the_student(tokenizer, tmp_path):
    """From the folder that the tokenizer came from."""
    import tiny_families

    tokenizer.save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "preprocessor_config.json").write_text('{"feature_size": 10}')
    loaded = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    for name, goes in (("whisper-large-v3", True), ("t5-small", False)):
        folder = write(tiny_families.model(name), loaded, tmp_path / name)
        assert (folder / "preprocessor_config.json").is_file() == goes
        verify_folder(folder)
