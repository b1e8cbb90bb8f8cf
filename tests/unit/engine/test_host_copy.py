"""A copy that nothing done to the original reaches, and that is written as small as the original."""

import io
import zipfile
from collections import OrderedDict

import torch

from distill_engine.engine.host_copy import host_copy


class Scaler:
    """Stands for what DeepSpeed keeps beside tensors."""

    def __init__(self) -> None:
        self.scale = 8.0


def state() -> dict:
    table = torch.arange(12.0).view(3, 4)
    scaler = Scaler()
    return {
        "module": OrderedDict(a=table, tied=table, row=table[1], turned=table.t()),
        "groups": [(torch.ones(2, dtype=torch.bfloat16), 3), {"empty": torch.empty(0, 2), "name": "x"}],
        "step": torch.tensor(7, dtype=torch.int64),
        "scaler": scaler,
    }


def blocks(value: object) -> list[int]:
    """Sizes of the blocks of memory that a file of it holds."""
    file = io.BytesIO()
    torch.save(value, file)
    with zipfile.ZipFile(file) as parts:
        return sorted(part.file_size for part in parts.infolist() if "/data/" in part.filename)


def test_values_types_and_layout_are_kept():
    original = state()
    copied = host_copy(original)
    assert type(copied["module"]) is OrderedDict and list(copied) == list(original)
    for name, tensor in original["module"].items():
        other = copied["module"][name]
        assert torch.equal(other, tensor) and (other.dtype, other.stride()) == (tensor.dtype, tensor.stride())
    assert torch.equal(copied["groups"][0][0], original["groups"][0][0]) and copied["groups"][0][1] == 3
    assert copied["groups"][1]["empty"].shape == (0, 2) and copied["step"].item() == 7


def test_nothing_is_shared_with_the_original():
    original = state()
    copied = host_copy(original)
    original["module"]["a"].zero_()
    original["scaler"].scale = 4.0
    original["step"] += 1
    assert copied["module"]["row"].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert (copied["scaler"].scale, copied["step"].item()) == (8.0, 7)


def test_what_shares_memory_shares_it_in_the_copy():
    copied = host_copy(state())["module"]
    copied["a"][1, 0] = 99.0
    assert copied["tied"][1, 0] == copied["row"][0] == copied["turned"][0, 1] == 99.0
    assert blocks(copied) == blocks(state()["module"]) == [48]


def test_memory_that_belongs_to_somebody_else_is_copied():
    borrowed = torch.frombuffer(bytearray(8), dtype=torch.float32)
    copied = host_copy([borrowed])
    borrowed.fill_(1.0)
    assert copied[0].tolist() == [0.0, 0.0]
