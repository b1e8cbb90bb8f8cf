"""Cases and a float64 reference for `projected_mse_sum`; the tests of every implementation load this file by path."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from rounding import product_error
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

# Of the largest gradient: fp32 sums in another order; half precision rounds f G once and the result once. To both
# this and the sum's comes what a product of that depth may be off by.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """Arguments of projected_mse_sum; student, weight and bias ask for gradients."""

    student: Tensor
    weight: Tensor | None
    bias: Tensor | None
    teacher: Tensor
    mask: Tensor

    def arguments(self) -> tuple:
        """In the order of the signature, without the clamp."""
        return self.student, self.weight, self.bias, self.teacher, self.mask

    def learned(self) -> list[Tensor]:
        """What gets gradients."""
        return [x for x in (self.student, self.weight, self.bias) if x is not None and x.requires_grad]


def case(
    tokens: int, depth: int, width: int | None = None, *, dtype=torch.float32, seed=0, kept=0.8, batch=1, device="cpu"
) -> Case:
    """[batch, tokens, depth] against [batch, tokens, width]; without a width no projection."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=draw) * scale).to(device, dtype)

    plain = width is None
    return Case(
        normal(batch, tokens, depth).requires_grad_(),
        None if plain else normal(width, depth, scale=depth**-0.5).requires_grad_(),
        None if plain else normal(width, scale=0.3).requires_grad_(),
        normal(batch, tokens, depth if plain else width),
        (torch.rand(batch, tokens, generator=draw) < kept).to(device),
    )


def exact(one: Case, clamp: float | None, upstream: float) -> tuple[Tensor, list[Tensor]]:
    """Sum and gradients in float64 by autograd; masked tokens are cut out, so what they hold cannot matter."""
    student, weight, bias = (None if x is None else x.detach().double().requires_grad_() for x in one.arguments()[:3])
    teacher, mask = one.teacher.double(), one.mask
    states = student[mask]
    if weight is not None:
        states = states @ weight.T + (0.0 if bias is None else bias)
    squared = (states - teacher[mask]).square()
    total = (squared if clamp is None else squared.clamp(max=clamp)).sum() / one.teacher.shape[-1]
    wanted = [
        mine for mine, theirs in zip((student, weight, bias), one.arguments()[:3], strict=True)
        if theirs is not None and theirs.requires_grad
    ]  # fmt: skip
    return total.detach(), list(torch.autograd.grad(total * upstream, wanted))


def computed(function: Callable, one: Case, clamp: float | None, upstream: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """Sum and gradients of an implementation."""
    total = function(*one.arguments(), clamp)
    return total.detach(), list(torch.autograd.grad(total * upstream, one.learned()))


def largest_error(mine: Tensor, theirs: Tensor) -> float:
    """Largest difference as a part of the largest element of `theirs`."""
    if theirs.numel() == 0:
        return 0.0
    difference = (mine.double() - theirs.double()).abs().max()
    return (difference / theirs.abs().max().clamp(min=1e-300)).item() if difference else 0.0


def check(function: Callable, one: Case, clamp: float | None, upstream: float = 1.0) -> None:
    """Sum, gradients, their dtypes and shapes against the float64 reference."""
    (value, gradients), (right, wanted) = computed(function, one, clamp, upstream), exact(one, clamp, upstream)
    assert (value.dtype, value.shape) == (torch.float32, ())
    depths = (0,) if one.weight is None else (one.student.shape[-1], one.weight.shape[0], one.mask.numel())
    deep = product_error(one.student.dtype, depths[0])
    assert largest_error(value, right) < 2e-6 + deep, (value, right)
    deep = product_error(one.student.dtype, max(depths))
    for name, mine, theirs, of in zip(("student", "weight", "bias"), gradients, wanted, one.learned(), strict=False):
        assert (mine.dtype, mine.shape) == (of.dtype, of.shape)
        assert largest_error(mine, theirs) < TOLERANCE[of.dtype] + deep, (name, largest_error(mine, theirs))
    assert len(gradients) == len(wanted)


def check_masked_tokens_change_nothing(function: Callable, one: Case, bad: float, side: str, clamp: float) -> None:
    """Bit for bit the same with inf or nan at masked tokens of the student or the teacher; zero gradient there."""
    clean = computed(function, one, clamp)
    spoiled = getattr(one, side).detach().clone()
    spoiled[~one.mask] = bad
    value, gradients = computed(function, replace(one, **{side: spoiled.requires_grad_(side == "student")}), clamp)
    assert torch.equal(value, clean[0])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients, clean[1], strict=True))
    assert (gradients[0][~one.mask] == 0).all()


def check_each_gradient_alone(function: Callable, one: Case) -> None:
    """Any part of student, weight and bias may ask for gradients; they are the same ones as all together."""
    names = [name for name in ("student", "weight", "bias") if getattr(one, name) is not None]
    together = dict(zip(names, computed(function, one, 1.0)[1], strict=True))
    for chosen in range(1, 2 ** len(names)):
        asks = {name: bool(chosen >> bit & 1) for bit, name in enumerate(names)}
        some = replace(one, **{name: getattr(one, name).detach().clone().requires_grad_(asks[name]) for name in names})
        gradients = computed(function, some, 1.0)[1]
        wanted = [together[name] for name in names if asks[name]]
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients, wanted, strict=True))


def check_small_gradients_under_a_loss_scale(function: Callable, device: str = "cpu") -> None:
    """fp16 gradients that would be 0 without the loss scale arrive in full when it is applied in time."""
    one = case(129, 32, 48, dtype=torch.float16, seed=5, device=device)
    one.teacher.copy_((one.student @ one.weight.T + one.bias).detach() * (1 + 2**-9))
    upstream = 65536 * 1e-5
    gradient = exact(one, 65504.0, upstream / 65536)[1][0]
    assert gradient.abs().max() < 2**-24  # below fp16's smallest number: without the scale nothing would be left
    check(function, one, 65504.0, upstream)


def check_large_differences(function: Callable, dtype: torch.dtype, device: str = "cpu") -> None:
    """Squares and differences beyond fp16's largest number; a nan that counts is seen."""
    one = case(3, 16, 16, dtype=dtype, kept=1.0, device=device)
    one.teacher.fill_(300.0)  # 90000 is inf in fp16
    check(function, one, None)
    big = replace(one, student=one.student.detach() * 6e3, teacher=torch.full_like(one.teacher, -6e4))
    assert function(*big.arguments(), 65504.0).item() == 3 * 65504.0
    big.teacher[0, 1, 2] = float("nan")
    assert function(*big.arguments(), 65504.0).isnan()


# ---- memory ----------------------------------------------------------------------------------------------------------


class _Held(TorchDispatchMode):
    """Bytes of all tensors that operations made and that are still alive, and the most there ever were."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet(x.untyped_storage() for x in given)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for made in torch.utils._pytree.tree_leaves(result):
            storage = made.untyped_storage() if isinstance(made, Tensor) else None
            if storage is not None and storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


def extra_bytes(function: Callable, tokens: int, depth: int, width: int, dtype=torch.float16) -> int:
    """Most that one forward and backward pass holds at once beside inputs and gradients; nothing is computed."""

    def empty(*shape: int, of=dtype) -> Tensor:
        return torch.empty(*shape, dtype=of, device="meta")

    learned = [x.requires_grad_() for x in (empty(tokens, depth), empty(width, depth), empty(width))]
    student, weight, bias = learned
    arguments = (student[None], weight, bias, empty(1, tokens, width), empty(1, tokens, of=torch.bool), 65504.0)
    with _Held([x for x in arguments if isinstance(x, Tensor)]) as held:
        function(*arguments).backward()
    return held.peak - sum(x.nbytes for x in learned)


def eager(student, weight, bias, teacher, mask, clamp) -> Tensor:
    """The formula as one would write it."""
    projected = functional.linear(student, weight, bias).float()
    squared = functional.mse_loss(projected, teacher.float(), reduction="none").clamp(max=clamp)
    return (squared * mask[..., None]).sum() / teacher.shape[-1]
