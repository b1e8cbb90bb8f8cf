"""Single tensors from a folder: every layout that teachers come in, and what is said about broken ones."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill_engine.models import weight_files
from distill_engine.models.weight_files import WeightFiles, WeightsError

LAYOUTS = ["one file", "shards", "pickle", "old pickle", "without prefix", "old pickle without prefix"]


def lay_out(folders, folder, layout: str) -> None:
    if layout == "shards":
        folders.shards(folder, lambda name: f"part-{'decoder' in name:d}.safetensors")
    elif "pickle" in layout:
        cut = "without prefix" in layout
        folders.pickle(folder, old_format="old" in layout, rename=lambda n: n.removeprefix("model.") if cut else n)
    elif layout == "without prefix":
        tensors = {name.removeprefix("model."): tensor for name, tensor in folders.tensors(folder).items()}
        weights_file = folder / "model.safetensors"
        weights_file.unlink()
        save_file(tensors, weights_file)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_is_found_in_every_layout(family, folders, layout):
    folder = folders.teacher(family)
    expected = folders.tensors(folder)
    assert len(expected) > 50
    lay_out(folders, folder, layout)
    files = WeightFiles(folder)
    cut = "without prefix" in layout
    stored = {name.removeprefix("model.") if cut else name: tensor for name, tensor in expected.items()}
    assert files.shapes == {name: tuple(tensor.shape) for name, tensor in stored.items()}
    for name, tensor in stored.items():
        assert torch.equal(files.read(name), tensor), name


def test_safetensors_are_preferred(folders):
    folder = folders.teacher("bart")
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    assert WeightFiles(folder).read("model.shared.weight").shape == (29, 16)


def test_the_stored_dtype_is_kept(folders, tiny, tmp_path):
    tiny.model("bart").half().save_pretrained(tmp_path / "half")
    assert WeightFiles(tmp_path / "half").read("model.shared.weight").dtype == torch.float16


def test_a_pickle_is_opened_once_and_never_unpickles_classes(folders, monkeypatch):
    folder = folders.teacher("bart")
    folders.pickle(folder, old_format=True)
    calls = []
    real = torch.load
    monkeypatch.setattr(weight_files.torch, "load", lambda *a, **k: calls.append(k["weights_only"]) or real(*a, **k))
    files = WeightFiles(folder)
    for layer in range(4):
        files.read(f"model.decoder.layers.{layer}.fc1.weight")
    assert calls == [True]


class Evil:
    """Would run a command if it were unpickled."""

    def __init__(self, target) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path):
    torch.save({"model.shared.weight": Evil(tmp_path / "broken-in")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        WeightFiles(tmp_path)
    assert not (tmp_path / "broken-in").exists()


def test_an_empty_folder(tmp_path):
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors or pytorch_model\.bin.*save_pretrained"):
        WeightFiles(tmp_path)


def test_a_missing_tensor_is_named(folders):
    folder = folders.teacher("bart")
    with pytest.raises(WeightsError, match=r"no tensor named 'model\.encoder\.layers\.9\.fc1\.weight' among its \d+"):
        WeightFiles(folder).read("model.encoder.layers.9.fc1.weight")


def test_a_missing_shard_is_named(folders):
    folder = folders.teacher("bart")
    folders.shards(folder, lambda name: f"part-{'decoder' in name:d}.safetensors")
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json names part-1\.safetensors, which is not"):
        WeightFiles(folder)


def test_an_index_that_lies_is_found_out(folders):
    folder = folders.teacher("bart")
    where = folders.shards(folder, lambda name: "part.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where | {"extra": "part.safetensors"}}))
    with pytest.raises(WeightsError, match=r"part\.safetensors does not hold 'extra'"):
        WeightFiles(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": 3}', '{"metadata": {}, "weight_map": {"a": 3}}', '{"weight_map": {}}']
)
def test_a_broken_index(folders, text):
    folder = folders.teacher("bart")
    folders.shards(folder, lambda name: "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match="is no index of weight files"):
        WeightFiles(folder)


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
@pytest.mark.parametrize("layout", ["one file", "pickle", "old pickle"])
def test_a_file_cut_short(folders, layout, keep):
    folder = folders.teacher("bart")
    lay_out(folders, folder, layout)
    file = next(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(WeightsError, match=rf"{file.name} cannot be read as .*may be incomplete: copy or download"):
        WeightFiles(folder)


def test_a_damaged_shard_that_no_student_needs_is_found(folders):
    folder = folders.teacher("bart")
    folders.shards(folder, lambda name: f"part-{'decoder' in name:d}.safetensors")
    shard = folder / "part-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"part-1\.safetensors cannot be read as safetensors"):
        WeightFiles(folder)


def test_two_shards_that_hold_the_same_tensor(folders):
    folder = folders.teacher("bart")
    folders.shards(folder, lambda name: f"part-{'decoder' in name:d}.safetensors")
    for number in (0, 1):
        file = folder / f"part-{number}.safetensors"
        save_file(load_file(file) | {"final_logits_bias": torch.ones(1, 29)}, file)
    with pytest.raises(WeightsError, match=r"part-0\.\w+ and part-1\.\w+ both hold 'final_logits_bias'"):
        WeightFiles(folder)


@pytest.mark.parametrize("named", ["gone.safetensors", "pytorch_model.bin", "../model.safetensors", "/x.safetensors"])
def test_a_file_that_the_configuration_names_is_there(folders, named):
    folder = folders.teacher("bart")
    save_file(folders.tensors(folder), folder.parent / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"config\.json names '{named}' as its weights"):
        WeightFiles(folder, named)


@pytest.mark.parametrize(
    ("name", "what"),
    [("adapter_config.json", "an adapter"), ("shard-00001-model-00001-of-00002.safetensors", "a distributed")],
)
def test_what_is_more_than_a_plain_model(folders, name, what):
    folder = folders.teacher("bart")
    (folder / name).write_text("{}")
    with pytest.raises(WeightsError, match=rf"holds {name}: {what}"):
        WeightFiles(folder)


@pytest.mark.parametrize(
    ("content", "said"), [({"model": {"a": torch.zeros(1)}, "epoch": 3}, "model"), ([1, 2], "list"), (3, "int")]
)
def test_a_pickle_of_something_else(tmp_path, content, said):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=f"is no file of weights: '{said}' in it is no tensor"):
        WeightFiles(tmp_path)
