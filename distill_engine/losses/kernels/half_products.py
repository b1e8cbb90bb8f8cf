"""Half-precision matrix products that float32 totals take up, as well as the PyTorch at hand can do it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, float32 total."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        _adding(left.device, left.dtype)(total, left, right)


def _add_within(total: Tensor, left: Tensor, right: Tensor) -> None:
    torch.addmm(total, left, right, out_dtype=torch.float32, out=total)


def _add_unrounded(total: Tensor, left: Tensor, right: Tensor) -> None:
    total.add_(torch.mm(left, right, out_dtype=torch.float32))


def _add_rounded(total: Tensor, left: Tensor, right: Tensor) -> None:
    total.add_(left @ right)


@lru_cache(maxsize=16)
def _adding(device: torch.device, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], None]:
    """The best way to add a half-precision product to a float32 total that this PyTorch has on the device: tried once,
    for an overload that exists may still refuse its arguments (2.8 and 2.9: a float32 total beside half factors)."""
    total, factor = torch.zeros(16, 16, device=device), torch.zeros(16, 16, dtype=dtype, device=device)
    for way in (_add_within, _add_unrounded):
        try:
            way(total, factor, factor)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError):  # NotImplementedError is one of the first kind
            continue
        return way
    return _add_rounded
