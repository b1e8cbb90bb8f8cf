"""Half-precision matrix products that float32 totals take up, as well as the PyTorch at hand can do it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from distill_engine.arithmetic import products


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, float32 total."""
    if left.dtype == torch.float32:
        products.add_product_(total, left, right)
    else:
        _adding(left.device, left.dtype)(total, left, right)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32, never rounded to the factors' dtype; slow where `unrounded` says no."""
    if left.dtype == torch.float32 or not unrounded(left.device, left.dtype):
        return left.float() @ right.float()
    return torch.mm(left, right, out_dtype=torch.float32)


@lru_cache(maxsize=16)
def unrounded(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this PyTorch forms half-precision products with float32 results on the device; tried once."""
    return _works(_add_unrounded, device, dtype)


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
    return next((way for way in (_add_within, _add_unrounded) if _works(way, device, dtype)), _add_rounded)


def _works(way: Callable[[Tensor, Tensor, Tensor], None], device: torch.device, dtype: torch.dtype) -> bool:
    total, factor = torch.zeros(16, 16, device=device), torch.zeros(16, 16, dtype=dtype, device=device)
    try:
        way(total, factor, factor)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError):  # NotImplementedError is one of the first kind
        return False
    return True
