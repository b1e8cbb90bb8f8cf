"""Linear layers that compute as int8 would, in floating point, so that a student learns what rounding will do to it.

What programs for inference do to a linear layer in int8, and what is imitated here: each output channel of the weight
has its own step, the largest magnitude over 127, and each token's input its own, found while it runs; both are rounded
to whole steps. CTranslate2 does exactly this; ONNX Runtime's dynamic int8 has the same steps in the weights, and for
inputs one range for all tokens of a product; PyTorch's has that range in 7 bits. The output layer is linear; rows of
the token table are rounded as CTranslate2 and ONNX Runtime keep them. Norms, biases, positions and attention itself
stay as they are. Rounding has no useful gradient, so it passes through unchanged: the straight-through estimator of
Y. Bengio et al. (2013, arXiv:1308.3432), used so by B. Jacob et al. (CVPR 2018, arXiv:1712.05877).

No observers and no states: a pass follows from weights and inputs alone, which is why resuming needs nothing. The
parameters are those of the plain model, under the same names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill_engine.arithmetic.products import linear

LEVELS = 127  # -127 to 127: symmetric, so that zero is a level
_SMALLEST = 1e-30  # a row of zeros needs a step, too; in float32, far from its smallest number


class _FakeInt8(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        exact = x.float()
        step = exact.abs().amax(dim=-1, keepdim=True).clamp_(min=_SMALLEST) / LEVELS
        return (exact / step).round_().mul_(step).to(x.dtype)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def fake_int8(x: Tensor) -> Tensor:
    """Each row [..., D] rounded to 255 levels around zero, of a step of its own; the gradient passes unchanged.

    Steps are float32 in any precision. Rows that are not finite become NaN.
    """
    rounded: Tensor = _FakeInt8.apply(x)
    return rounded


@dataclass
class Switch:
    """Whether the layers of one model round; off, they are plain ones to the bit."""

    on: bool = False


class FakeInt8Linear(nn.Linear):
    """A linear layer in imitated int8 while its switch is on.

    In eval mode without gradients the weight is rounded once, until a mode is set again: generating reads it token by
    token, and weights change between these two calls only.
    """

    def __init__(self, plain: nn.Linear, switch: Switch) -> None:
        """Takes over the parameters of `plain`, tied ones too."""
        with torch.device("meta"):
            super().__init__(plain.in_features, plain.out_features, plain.bias is not None)
        self.weight, self.bias = plain.weight, plain.bias
        self.training = plain.training
        self._switch = switch
        self._rounded: Tensor | None = None

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight whose product is taken: rounded, or as they are."""
        if not self._switch.on:
            return x, self.weight
        return fake_int8(x), self._rounded_weight()

    def _rounded_weight(self) -> Tensor:
        if self.training or torch.is_grad_enabled():
            return fake_int8(self.weight)
        if self._rounded is None:
            self._rounded = fake_int8(self.weight)
        return self._rounded

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return linear(*self.operands(x), self.bias)

    def train(self, mode: bool = True) -> FakeInt8Linear:
        """As any module; what was rounded is forgotten."""
        self._rounded = None
        super().train(mode)
        return self


def with_fake_int8(model: nn.Module, tables: Iterable[nn.Module]) -> Switch:
    """Let every linear layer of a model and rows of token `tables` be rounded while the switch that comes back is on.

    Before `adapt`, whose hooks then see what is computed. Raises ValueError for a model without linear layers.
    """
    switch = Switch()
    plain = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    if not plain:
        raise ValueError(f"{type(model).__name__} has no layers of torch.nn.Linear, which are what int8 is for.")
    for name, module in plain:
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, FakeInt8Linear(module, switch))

    def rounded(_module: nn.Module, _given: Any, rows: Tensor) -> Tensor | None:
        return fake_int8(rows) if switch.on else None  # a scaled row is rounded as the row itself

    for table in {id(one): one for one in tables if isinstance(one, nn.Embedding)}.values():
        table.register_forward_hook(rounded)
    return switch


def product_of(head: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Input and weight of an output layer's product, as its own forward pass takes them."""
    return head.operands(x) if isinstance(head, FakeInt8Linear) else (x, head.get_parameter("weight"))
