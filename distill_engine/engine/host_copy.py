"""A copy of an engine's state in host memory, to be written while training changes the original."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

Storages = dict[tuple[int, int, str], torch.UntypedStorage]  # address, bytes, device -> their copy


def host_copy(state: Any) -> Any:
    """The same nested containers with every tensor in CPU memory and nothing shared with `state`.

    Tensors that share memory in `state` share it in the copy, so that a file written from it is no larger. Other
    objects (a loss scaler) are copied deeply.
    """
    return _copy(state, {})


def _copy(value: Any, storages: Storages) -> Any:
    if isinstance(value, Tensor):
        return _tensor(value.detach(), storages)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _copy(one, storages)) for key, one in value.items())
    if type(value) in (list, tuple):
        return type(value)(_copy(one, storages) for one in value)
    return copy.deepcopy(value)


def _tensor(value: Tensor, storages: Storages) -> Tensor:
    own = value.untyped_storage()
    key = (own.data_ptr(), own.nbytes(), str(own.device))
    if key not in storages:
        host = torch.empty(own.nbytes(), dtype=torch.uint8, device="cpu").untyped_storage()
        storages[key] = host.copy_(own)
    fresh = torch.empty(0, dtype=value.dtype, device="cpu")
    return fresh.set_(storages[key], value.storage_offset(), value.size(), value.stride())
