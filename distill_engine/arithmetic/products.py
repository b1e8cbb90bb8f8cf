"""Float32 matrix products on a CPU, by the library that is quicker there.

PyTorch gives float32 products to MKL, which keeps to 256-bit instructions on processors that are not Intel's; oneDNN,
in the same PyTorch, takes the 512-bit ones that AMD's have had since Zen 4. On one core of a Zen 5 that is 230 against
105 GFLOP/s at models' shapes (benchmarks/README.md). Half precision is oneDNN's already.

Processor and the size of the right factor decide, no clock: one machine gives the same bits every time. Not the rows of
the left one, as both libraries give a row the same bits whatever others are beside it, so features of an example do
not depend on its batch (a product of a dozen rows or fewer in all may have bits of its own). A run that goes on on
another kind of processor goes on with other last bits. All of it is left to MKL where `torch.backends.mkldnn.enabled`
is False.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Elements of a right factor, and rows and columns, below which a call of oneDNN (12 microseconds) is rarely won back
_LEAST, _THIN = 1 << 16, 16
_ADDED = 128  # rows that are made at a time to be added: so few that they take no memory to speak of
_AMD = ("AuthenticAMD", "HygonGenuine")


class Linear(nn.Linear):
    """A linear layer of the same weights."""

    def forward(self, input: Tensor) -> Tensor:  # the base's name
        """As `linear`."""
        return linear(input, self.weight, self.bias)


def use_quicker_products(model: nn.Module) -> None:
    """Let every linear layer of a model, whatever else is done with it, multiply by `linear`; one of another kind that
    derives from torch's is left alone."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b with gradients; x [..., I], weight [O, I], bias [O] or None; any dtype and device."""
    if x.ndim < 2 or not _better(x, weight):
        return functional.linear(x, weight, bias)  # looked up here: ZeRO-3 replaces it
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        # a view that a function of ours returned might not be written to, as the logits' bias is
        rows: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)
        return rows.view(*x.shape[:-1], len(weight))
    return _by_onednn(x, weight, bias)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right without gradients, into `out` if there is one; [M, K] and [K, N] of one dtype, on any device."""
    if not _better(left, right):
        return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)
    found = _by_onednn(left, right.t(), None)
    return found if out is None else out.copy_(found)


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right without gradients, all of one dtype. Either factor may be the large one: of a gradient no
    row has to keep its bits in another batch."""
    if not (_better(left, right) or _better(right, left)):
        total.addmm_(left, right)
        return
    for part, rows in zip(total.split(_ADDED), left.split(_ADDED), strict=True):
        part.add_(_by_onednn(rows, right.t(), None))


def library() -> str:
    """Whose this process' larger float32 products on the CPU are: oneDNN, or whatever PyTorch takes (mostly MKL)."""
    return "oneDNN" if torch.backends.mkldnn.enabled and quicker_by_onednn() else "PyTorch's own choice"


@lru_cache(maxsize=1)
def quicker_by_onednn() -> bool:
    """Whether this processor's larger float32 products are oneDNN's."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and _vendor() in _AMD and _works()


def _better(left: Tensor, right: Tensor) -> bool:
    """Whether a product is taken from MKL; right: [K, N], or [N, K] of a linear layer."""
    if left.dtype != torch.float32 or right.dtype != torch.float32 or left.device.type != "cpu":
        return False
    large = right.numel() >= _LEAST and min(right.shape) >= _THIN
    asked = bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled("cpu")
    return large and asked and quicker_by_onednn()


class _Linear(torch.autograd.Function):
    """Of rows x [N, I]: dx = g W          dW = g^T x          db = sum of g over rows"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)  # of frozen weights no input is held
        return _by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = product(gradient, weight) if ctx.needs_input_grad[0] else None
        of_weight = product(gradient.t(), x) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, gradient.sum(dim=0) if ctx.needs_input_grad[2] else None


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")


def _works() -> bool:
    """PyTorch's own compiler calls this operator, users do not: so it is tried, with operands as they lie here."""
    left, right, wide = (torch.arange(float(rows * 4)).view(rows, 4) for rows in (6, 5, 6))  # whole numbers: exact
    try:
        plain = torch.equal(_by_onednn(left, right, None), left @ right.t())
        return plain and torch.equal(_by_onednn(left.t(), wide.t(), None), left.t() @ wide)
    except (AttributeError, RuntimeError, TypeError):  # NotImplementedError is one of the second kind
        return False
