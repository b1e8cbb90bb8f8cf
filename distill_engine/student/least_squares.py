"""Least squares from sums over positions, in float64: what a narrower student's maps, norms, projections begin as."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGE = 1e-3  # of the mean square of what is read


class LinearFit:
    """x [N, n] ~ A z + c, from sums over z [N, k]; drawn to `start` [n, k] where z says too little."""

    def __init__(self, start: Tensor, *, constant: bool) -> None:
        self._start, self._constant = start.double(), constant
        k = start.shape[1] + constant
        self._zz = start.new_zeros(k, k, dtype=torch.float64)
        self._xz = start.new_zeros(start.shape[0], k, dtype=torch.float64)

    def add(self, x: Tensor, z: Tensor) -> None:
        x, z = x.double(), z.double()
        if self._constant:
            z = torch.cat([z, z.new_ones(len(z), 1)], 1)
        self._zz += z.mT @ z
        self._xz += x.mT @ z

    def solved(self) -> tuple[Tensor, Tensor]:
        """A [n, k] and c [n]."""
        n, k = self._start.shape
        start = torch.cat([self._start, self._start.new_zeros(n, int(self._constant))], 1)
        ridge = torch.full((len(self._zz),), float(_RIDGE * self._zz.diagonal()[:k].mean()))
        ridge[k:] = 1e-9 * float(self._zz[-1, -1])  # a constant costs nothing
        ridge = ridge.to(self._zz).clamp_min(1e-30)
        found = start + torch.linalg.solve(self._zz + ridge.diag(), (self._xz - start @ self._zz).mT).mT
        return found[:, :k], found[:, k] if self._constant else found.new_zeros(n)


@dataclass
class NormFit:
    """Sums over n [N, d] (normalised) and y [N, d]: the weight and bias that make y of n, channel by channel."""

    sums: Tensor | None = None  # [5, d]: n, y, n n, n y, 1

    def add(self, n: Tensor, y: Tensor) -> None:
        n, y = n.double(), y.double()
        here = torch.stack([n.sum(0), y.sum(0), n.square().sum(0), (n * y).sum(0), torch.full_like(n[0], len(n))])
        self.sums = here if self.sums is None else self.sums + here

    def solved(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert self.sums is not None, "no position was seen"
        n, y, nn, ny, count = self.sums
        if bias is None:
            ridge = _RIDGE * nn.mean()
            return (ny + ridge * weight) / (nn + ridge), None
        spread, shared = nn - n * n / count, ny - n * y / count
        ridge = 1e-6 * spread.mean().clamp_min(1e-30)
        found = (shared + ridge * weight) / (spread + ridge)
        return found, (y - found * n) / count


@dataclass
class LogitsFit:
    """The norm before the vocabulary: weight and bias so that logits are the teacher's, centred over the vocabulary."""

    nn: Tensor | None = None
    ny: Tensor | None = None
    n: Tensor | None = None
    y: Tensor | None = None
    count: int = 0

    def add(self, n: Tensor, y: Tensor) -> None:
        n, y = n.double(), y.double()
        parts = (n.mT @ n, n.mT @ y, n.sum(0), y.sum(0))
        before = (self.nn, self.ny, self.n, self.y)
        self.nn, self.ny, self.n, self.y = (
            new if old is None else old + new for old, new in zip(before, parts, strict=True)
        )
        self.count += len(n)

    def solved(self, weight: Tensor, bias: Tensor | None, own: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor | None]:
        """own [V, d] and teacher [V, D]: tables of the vocabulary, times what scales the decoder's output."""
        assert self.nn is not None and self.ny is not None and self.n is not None and self.y is not None
        own, teacher = (table.double() - table.double().mean(0) for table in (own, teacher))
        near, far = own.mT @ own, own.mT @ teacher
        left, right = near * self.nn, (far * self.ny).sum(1)
        start = weight.double()
        if bias is not None:
            across = near * self.n[:, None]
            left = torch.cat([torch.cat([left, across], 1), torch.cat([across.mT, near * self.count], 1)])
            right = torch.cat([right, far @ self.y])
            start = torch.cat([start, bias.double()])
        ridge = (_RIDGE * left.diagonal().clamp_min(1e-30)).diag()
        found = start + torch.linalg.solve(left + ridge, right - left @ start)
        d = len(weight)
        return found[:d], None if bias is None else found[d:]
