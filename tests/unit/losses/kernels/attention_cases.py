"""Cases and checks that every implementation of `attention_mse_sums` has to pass, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from rounding import product_error
from torch import Tensor

from distill_engine.losses.kernels.attention_mse import attention_mse_sum, pair_mask
from distill_engine.values import QueryKey

Sums = Callable[..., Tensor]
# gradient error relative to its norm; half precision: what rounding the result alone costs, and a little
TOLERANCE = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 4e-3}


@dataclass(frozen=True)
class Case:
    """Arguments of one call."""

    students: list[QueryKey]
    teachers: list[QueryKey]
    query_mask: Tensor
    key_mask: Tensor | None
    causal: bool
    clamp: float | None

    @property
    def leaves(self) -> list[Tensor]:
        return [tensor for pair in self.students for tensor in (pair.query, pair.key)]

    def call(self, sums: Sums) -> Tensor:
        return sums(self.students, self.teachers, self.query_mask, self.key_mask, self.causal, self.clamp)


def heads(*shape: int, seed: int, dtype: torch.dtype, device: str = "cpu", size: float = 1.0) -> Tensor:
    """[B, H, L, E] as models make it: a view of [B, L, H, E]."""
    examples, count, length, width = shape
    values = torch.randn(examples, length, count, width, generator=torch.Generator().manual_seed(seed)) * size
    return values.to(device, dtype).transpose(1, 2)


def make(
    examples: int, count: int, queries: int, keys: int, student: int, teacher: int, *, causal: bool = False,
    clamp: float | None = None, dtype: torch.dtype = torch.float32, layers: int = 1, seed: int = 0,
    masks: str = "random", device: str = "cpu", size: float = 1.0,
) -> Case:  # fmt: skip
    """Random heads; masks: random (a fifth is masked), none, or right (padded on the right, the last example empty)."""

    def side(width: int, first: int) -> list[QueryKey]:
        return [
            QueryKey(
                heads(examples, count, queries, width, seed=first + 2 * n, dtype=dtype, device=device, size=size),
                heads(examples, count, keys, width, seed=first + 2 * n + 1, dtype=dtype, device=device, size=size),
                width**-0.5 * (1 + 0.25 * n),
            )
            for n in range(layers)
        ]

    def mask(length: int, salt: int) -> Tensor:
        if masks == "right":
            ends = torch.tensor([max(0, length - 2 * n) if n + 1 < examples else 0 for n in range(examples)])
            return (torch.arange(length) < ends[:, None]).to(device)
        draw = torch.Generator().manual_seed(seed + salt)
        return (torch.rand(examples, length, generator=draw) < (2.0 if masks == "none" else 0.8)).to(device)

    students = side(student, 1000 * seed)
    for pair in students:
        pair.query.requires_grad_(), pair.key.requires_grad_()
    key_mask = None if causal else mask(keys, 2)
    return Case(students, side(teacher, 1000 * seed + 500), mask(queries, 1), key_mask, causal, clamp)


def exact(case: Case, upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Sums and gradients in float64, by the definition."""
    values, gradients = [], []
    keep = pair_mask(case.query_mask, case.key_mask, case.causal)[:, None]
    for number, (student, teacher) in enumerate(zip(case.students, case.teachers, strict=True)):
        leaves = [x.detach().double().requires_grad_() for x in (student.query, student.key)]
        theirs = teacher.query.double() @ teacher.key.double().transpose(2, 3)
        difference = student.scale * leaves[0] @ leaves[1].transpose(2, 3) - teacher.scale * theirs
        squared = difference.square() if case.clamp is None else difference.square().clamp(max=case.clamp)
        values.append(torch.where(keep, squared, 0.0).sum() / student.query.shape[1])
        gradients += torch.autograd.grad(values[-1], leaves, upstream[number].double())
    return torch.stack(values).detach(), gradients


def eager(case: Case, upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Sums and gradients by whole float32 matrices."""
    mask = pair_mask(case.query_mask, case.key_mask, case.causal)
    values = torch.stack(
        [attention_mse_sum(s, t, mask, case.clamp) for s, t in zip(case.students, case.teachers, strict=True)]
    )
    return values.detach(), list(torch.autograd.grad(values, case.leaves, upstream))


def ours(sums: Sums, case: Case, upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    values = case.call(sums)
    return values.detach(), list(torch.autograd.grad(values, case.leaves, upstream))


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest relative error of a tensor, by norms."""
    return max(
        ((x.double() - y).norm() / y.norm().clamp(min=1e-300)).item() if y.norm() > 0 else x.double().norm().item()
        for x, y in zip(found, wanted, strict=True)
    )


def check(sums: Sums, case: Case, upstream: Tensor | None = None, worse_than_eager: float = 2.0) -> None:
    """Sums and gradients near float64, and nearly as near as whole matrices in float32 come.

    To the sums' bound comes what tensor cores may cut off, since whole float32 matrices do not use them.
    """
    upstream = (
        torch.linspace(-2.5, 3.0, len(case.students), device=case.query_mask.device) if upstream is None else upstream
    )
    values, gradients = ours(sums, case, upstream)
    exact_values, exact_gradients = exact(case, upstream)
    eager_values, eager_gradients = eager(case, upstream)
    assert values.dtype == torch.float32 and [g.dtype for g in gradients] == [x.dtype for x in case.leaves]
    assert all(g.shape == x.shape for g, x in zip(gradients, case.leaves, strict=True))
    off, eagerly_off = error([values], [exact_values]), error([eager_values], [exact_values])
    dtype = case.students[0].query.dtype
    deepest = max(pair.query.shape[-1] for pair in (*case.students, *case.teachers))
    cut = 0.0 if dtype == torch.float32 else product_error(dtype, deepest)
    assert off <= worse_than_eager * eagerly_off + 2e-7 + cut, f"sums are off by {off}, eager's by {eagerly_off}"
    off, eagerly_off = error(gradients, exact_gradients), error(eager_gradients, exact_gradients)
    assert off <= TOLERANCE[dtype], f"gradients are off by {off}"
    assert off <= worse_than_eager * eagerly_off + 2e-7, f"gradients are off by {off}, eager's by {eagerly_off}"


def check_masked_places_may_hold_anything(sums: Sums, bad: float, device: str = "cpu") -> None:
    """Padding of either model filled with `bad` changes no bit of sum and gradient, and gets gradient 0."""
    for causal in (False, True):
        case = make(3, 1, 9, 9, 8, 24, causal=causal, clamp=1.5, masks="right", dtype=torch.float16, device=device)
        upstream = torch.ones(1, device=device)
        values, gradients = ours(sums, case, upstream)
        hole = ~case.query_mask[:, None].expand(3, 1, 9)
        with torch.no_grad():
            for pair in (*case.students, *case.teachers):
                pair.query[hole], pair.key[hole] = bad, bad
        spoilt_values, spoilt_gradients = ours(sums, case, upstream)
        assert torch.equal(values, spoilt_values) and values.item() > 0
        for clean, spoilt in zip(gradients, spoilt_gradients, strict=True):
            assert torch.equal(clean, spoilt) and (clean[hole] == 0).all() and (clean[~hole] != 0).any()


def check_small_gradients_survive(sums: Sums, device: str = "cpu") -> None:
    """fp16: gradients that would vanish unscaled come out of a loss scale of 65536 with full precision."""
    case = make(1, 1, 20, 24, 64, 32, dtype=torch.float16, masks="none", device=device, size=2.0**-8)
    upstream = torch.tensor([65536.0], device=device)
    unscaled = exact(case, torch.ones(1, device=device))[1]
    assert all(0 < g.abs().max() < 2.0**-14 for g in unscaled)  # below the normal numbers of fp16
    check(sums, case, upstream)


def check_clamp_edges(sums: Sums, device: str = "cpu") -> None:
    """A clamped pair counts its bound and learns nothing; scores beyond fp16's range are no trouble."""

    def single(query: list[float]) -> QueryKey:
        ones = torch.ones(1, len(query), 1, 1, dtype=torch.float16, device=device)
        return QueryKey(ones * torch.tensor(query, device=device).half().view(1, -1, 1, 1), ones, 256.0)

    student, teacher, seen = (
        single([1024.0, 0.5]),
        single([0.0, 0.0]),
        torch.ones(1, 1, dtype=torch.bool, device=device),
    )
    student.query.requires_grad_()
    value = sums([student], [teacher], seen, seen, False, 65504.0)
    assert value.tolist() == [(65504.0 + 128.0**2) / 2]
    value.sum().backward()
    assert student.query.grad.flatten().tolist() == [0.0, 128.0 * 256]
    assert sums([student], [teacher], seen, seen, False, None).item() == (262144.0**2 + 128.0**2) / 2


def check_nan_is_not_hidden(sums: Sums, device: str = "cpu") -> None:
    """An overflow in a place that counts has to reach the loss scaler."""
    case = make(1, 1, 4, 4, 16, 16, clamp=1.0, masks="none", dtype=torch.float16, device=device)
    with torch.no_grad():
        case.students[0].query[0, 0, 1, 3] = math.nan
    values, gradients = ours(sums, case, torch.ones(1, device=device))
    assert values.isnan().all() and any(gradient.isnan().any() for gradient in gradients)


def check_twice_the_same(sums: Sums, device: str = "cpu") -> None:
    case = make(1, 2, 70, 70, 40, 80, causal=True, dtype=torch.float16, device=device)
    first, second = (ours(sums, case, torch.ones(1, device=device)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and all(map(torch.equal, first[1], second[1]))


def check_nothing_to_do(sums: Sums, device: str = "cpu") -> None:
    """No layers, no examples, no pairs: zeros, with gradients of zeros."""
    seen = torch.ones(2, 3, dtype=torch.bool, device=device)
    assert sums([], [], seen, seen, False, None).shape == (0,)
    for shape in ((0, 2, 3, 4), (2, 2, 0, 3), (2, 2, 3, 0)):
        case = make(*shape, 16, 16, device=device)
        values, gradients = ours(sums, case, torch.ones(1, device=device))
        assert values.tolist() == [0.0] and all((g == 0).all() for g in gradients)
    case = make(2, 2, 5, 6, 16, 16, device=device)
    silent = replace(case, query_mask=case.query_mask & False)
    values, gradients = ours(sums, silent, torch.ones(1, device=device))
    assert values.tolist() == [0.0] and all((g == 0).all() for g in gradients)


def check_recomputed_activations(sums: Sums, device: str = "cpu") -> None:
    """Inside and outside a checkpointed region the gradients are those without checkpointing."""
    from torch.utils.checkpoint import checkpoint

    case = make(1, 1, 9, 9, 16, 24, causal=True, dtype=torch.float32, device=device)
    weight = torch.eye(16, device=device).add_(0.1).requires_grad_()

    def loss(query: Tensor) -> Tensor:
        student = QueryKey((query @ weight).tanh(), case.students[0].key, 0.25)
        return sums([student], case.teachers, case.query_mask, None, True, 2.0).sum()

    query = case.students[0].query
    inputs = [query, weight, case.students[0].key]
    plain = torch.autograd.grad(loss(query), inputs)
    inside = torch.autograd.grad(checkpoint(loss, query, use_reentrant=False), inputs)
    assert all(map(torch.equal, plain, inside)) and all((g != 0).any() for g in plain)


def check_no_gradient_when_validating(sums: Sums, device: str = "cpu") -> None:
    case = make(1, 2, 7, 9, 16, 24, device=device)
    with torch.no_grad():
        quiet = case.call(sums)
    loud = case.call(sums)
    assert not quiet.requires_grad and loud.requires_grad and torch.equal(quiet, loud)
    once = torch.autograd.grad(loud.sum(), case.leaves, retain_graph=True)
    again = torch.autograd.grad(loud.sum() * 2, case.leaves)  # a second pass through the same graph
    assert all(torch.equal(2 * x, y) for x, y in zip(once, again, strict=True))


REFUSED = [
    ({"layers": 2}, 1, r"2 student layers, 1 teacher layers.*one teacher layer for every"),
    ({"count": 4}, 1, r"mapped layer 0: the student has 4 heads, the teacher 2.*equal heads or weight 0"),
    ({"queries": 6}, 1, r"mapped layer 0: .*\(2, 2, 6, 16\).* the masks say 2 examples, 5 queries, 7 keys"),
    ({"causal": True}, 1, r"5 queries, 7 keys, causal.* as many keys as queries"),
]
