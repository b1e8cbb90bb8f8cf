"""Single tensors from a folder: every layout that teachers come in, and what is said about broken ones."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from distill_engine.student import weights
from distill_engine.student.weights import WeightFiles, WeightsError

LAYOUTS = ["one file", "shards", "pickle", "old pickle", "without prefix", "old pickle without prefix"]


def lay_out(folders, folder, layout: str) -> None:
    if layout == "shards":
        folders.shards(folder, lambda name: f"part-{'decoder' in name:d}.safetensors")
    elif "pickle" in layout:
        cut = "without prefix" in layout
        folders.pickle(
            folder, old_format="old" in layout, rename=lambda n: n.removeprefix("model.") if cut else n
        )
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
    for name, tensor in expected.items():
        assert torch.equal(files.read(name), tensor), name
    for name in folders.TIED:  # saved once, under one of their names
        assert torch.equal(files.read(name), expected["model.shared.weight"])


def test_a_folder_that_only_stores_the_output_layer(folders, tmp_path):
    folder = folders.teacher("bart")
    folders.pickle(folder, rename=lambda name: "lm_head.weight" if name == "model.shared.weight" else name)
    assert WeightFiles(folder).resolve("model.shared.weight") == "lm_head.weight"


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
    monkeypatch.setattr(weights.torch, "load", lambda *a, **k: calls.append(k["weights_only"]) or real(*a, **k))
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
    assert WeightFiles(folder).resolve("nonsense") is None


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
    index.write_text(json.dumps({"weight_map": where | {"extra": "part.safetensors"}}))
    with pytest.raises(WeightsError, match=r"part\.safetensors does not hold 'extra'"):
        WeightFiles(folder).read("extra")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index(folders, text):
    folder = folders.teacher("bart")
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
    with pytest.raises(WeightsError, match=rf"{file.name} cannot be read as .*download may be incomplete"):
        WeightFiles(folder)


def test_check_readable_finds_a_damaged_shard_that_no_student_needs(folders):
    folder = folders.teacher("bart")
    folders.shards(folder, lambda name: f"part-{'decoder' in name:d}.safetensors")
    WeightFiles(folder).check_readable()
    shard = folder / "part-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"part-1\.safetensors cannot be read as safetensors"):
        WeightFiles(folder).check_readable()
