"""Counts what makes the host wait for the device, and collectives, as PyTorch dispatches them: also on a CPU.

What a CPU does not show: `synchronize` of the accelerator itself, and copies between devices that are one here. A
profiler on a GPU counts those (`step.py --preset bb3b_1gpu`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# what needs a number, or a size, that only the device knows
_READS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select", "unique_dim",
    "unique_consecutive", "_unique", "_unique2", "bincount",
}  # fmt: skip
# methods that copy numbers out without an operation where the tensor is on the host already
_PYTHON_READS = {"tolist", "numpy", "cpu", "__array__"}


class _Operations(TorchDispatchMode):
    def __init__(self, found: Counter[str], collectives: Counter[str]) -> None:
        super().__init__()
        self._found, self._collectives = found, collectives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if func.namespace == "c10d":
            self._collectives[name] += 1
            self._found.update(["barrier"] if name == "barrier" else [])
        elif name in _READS or (name == "repeat_interleave" and not (kwargs or {}).get("output_size")):
            self._found[name] += 1
        elif name in ("index", "index_put", "index_put_") and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        ):
            self._found[f"{name} by a mask"] += 1
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """What is dispatched on a GPU only: whole tensors read, and numbers sent in memory that is not pinned."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name in _PYTHON_READS:
            self._found[name] += 1
        elif name in ("tensor", "as_tensor") and kwargs.get("device") is not None:
            self._found["tensor made on the device"] += 1
        return func(*args, **kwargs)


class HostWaits(contextlib.ExitStack):
    """While active: `found` has waits by name, `collectives` those started by name, `total` all waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Waits so far."""
        return self.found.total()

    def __enter__(self) -> HostWaits:
        super().__enter__()
        self.enter_context(_Operations(self.found, self.collectives))
        self.enter_context(_Calls(self.found))
        return self
