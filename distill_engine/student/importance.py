"""Which channels, heads and neurons of a teacher matter most on real examples, and are kept in a narrower student.

What counts of an element is what it does behind the map that reads it: its variance times the squared norm of its
column of weights, as in Wanda (Sun et al. 2024, arXiv:2306.11695) with the variances of FLAP (An et al. 2024,
arXiv:2312.11983): a bias makes up for a constant. Where maps have no biases, second moments take their place. The
structures are those of LLM-Pruner (Ma et al. 2023, arXiv:2305.11627) and Minitron (Muralidharan et al. 2024,
arXiv:2407.14679).

channels  one choice for the whole model, by the sum over all maps that read them, each of which counts as much
heads     of each attention, by the energy of what they contribute; one choice for all self-attentions of a stack where
          one table of position biases serves them
neurons   of each feed-forward part
inside    where the student's heads are smaller: maps from a head's elements to fewer. Those of queries and keys keep
          most of their products, those of values most of what the head contributes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill_engine.families.shape import Axis, Shape
from distill_engine.student.watched import Watched, parent
from distill_engine.values import Batch, Stack

_TINY = 1e-9  # of the largest eigenvalue: below it is rounding


@dataclass(frozen=True)
class Choice:
    """What is kept, in the teacher's order; of attentions and feed-forward parts by the teacher's names.

    channels  [d]                     heads    part -> [h]
    neurons   part -> [f]             inside   (part, axis) -> [h, e, E], where e is less than E
    sizes     part -> E
    """

    channels: Tensor
    heads: Mapping[str, Tensor]
    neurons: Mapping[str, Tensor]
    inside: Mapping[tuple[str, Axis], Tensor]
    sizes: Mapping[str, int]

    def kept(self, values: Tensor, part: str, axis: Axis) -> Tensor:
        """[n, ...] -> [k, ...]: of values along an axis of a part's map."""
        if axis is Axis.WIDTH:
            return values[self.channels]
        if axis is Axis.NEURON:
            return values[self.neurons[part]]
        if axis is Axis.HEAD:
            return values[self.heads[part]]
        of_heads = values.reshape(-1, self.sizes[part], *values.shape[1:])[self.heads[part]]  # [h, E, ...]
        inside = self.inside.get((part, axis))
        if inside is not None:
            of_heads = torch.einsum("hkn,hn...->hk...", inside.to(values.dtype), of_heads)
        return of_heads.flatten(0, 1)


@dataclass
class _Moments:
    """Sums of values [N, n] and of their products: of each with itself, or of all in each head of `size` elements."""

    size: int = 1
    count: int = 0
    total: Tensor | None = None  # [n / size, size]
    products: Tensor | None = None  # [n / size, size, size]

    def add(self, values: Tensor) -> None:
        x = values.double().unflatten(-1, (-1, self.size))
        total, products = x.sum(0), torch.einsum("nhi,nhj->hij", x, x)
        self.count += len(x)
        self.total = total if self.total is None else self.total + total
        self.products = products if self.products is None else self.products + products

    def covariance(self, centred: bool) -> Tensor:
        """[n / size, size, size]: of second moments, or around the mean."""
        assert self.total is not None and self.products is not None, "no position was seen"
        mean = self.total / self.count
        second = self.products / self.count
        return second - mean[:, :, None] * mean[:, None, :] if centred else second


@dataclass
class _Measured:
    """Of the linear maps that are copied, by name: what they read, and what those to queries and keys give."""

    read: dict[str, _Moments] = field(default_factory=dict)
    given: dict[str, _Moments] = field(default_factory=dict)
    last: _Moments = field(default_factory=_Moments)


def choose(watched: Watched, batches: Iterable[Batch], used: Iterable[str], teacher: Shape, own: Shape) -> Choice:
    """What a student of shape `own` keeps, by what these batches do in the linear maps `used` (and in all attentions
    whose table of position biases is used)."""
    names = sorted(used)
    sizes = {parent(name): teacher.head_of(watched.stack(name)) for name in names}
    measured = _measure(watched, batches, names, sizes, own)
    neurons = {
        parent(name): _best(_energy(watched, measured, name), own.ffn_of(watched.stack(name)))
        for name in names
        if watched.axes(name)[1] is Axis.NEURON
    }
    heads = _heads(watched, measured, names, own)
    inside = {
        (part, axis): value[heads[part]]
        for part, stack in {parent(name): watched.stack(name) for name in names}.items()
        if part in heads and own.head_of(stack) < sizes[part]
        for axis, value in _inside(watched, measured, part, own.head_of(stack)).items()
    }
    return Choice(_channels(watched, measured, names, own), heads, neurons, inside, sizes)


def _measure(
    watched: Watched, batches: Iterable[Batch], names: list[str], sizes: Mapping[str, int], own: Shape
) -> _Measured:
    found = _Measured()
    for name in names:
        out, into = watched.axes(name)
        size = sizes[parent(name)]
        found.read[name] = _Moments(size if into is Axis.VALUE else 1)
        if out in (Axis.QUERY, Axis.KEY) and own.head_of(watched.stack(name)) < size:
            found.given[name] = _Moments(size)
    for seen in watched.look(batches, linears=names):
        for one in seen.linears:
            found.read[one.name].add(one.read)
            if one.name in found.given:
                found.given[one.name].add(one.given)
        for read, _ in seen.last:
            found.last.add(read)
    return found


def _energy(watched: Watched, measured: _Measured, name: str) -> Tensor:
    """[columns] or, of maps that read heads, [heads]: the mean square of what each contributes to a map's output."""
    weight = watched.linears[name].weight.double()
    covariance = measured.read[name].covariance(centred=watched.linears[name].bias is not None)
    by_head = weight.unflatten(1, covariance.shape[:2])  # [out, n, size]
    return torch.einsum("ohi,hij,ohj->h", by_head, covariance, by_head)


def _best(importance: Tensor, count: int) -> Tensor:
    """[count]: the most important ones, in order."""
    return importance.argsort(descending=True, stable=True)[:count].sort().values


def _heads(watched: Watched, measured: _Measured, names: list[str], own: Shape) -> dict[str, Tensor]:
    energies = {parent(n): (n, _energy(watched, measured, n)) for n in names if watched.axes(n)[1] is Axis.VALUE}
    shares = {part: energy / energy.sum().clamp_min(1e-30) for part, (_, energy) in energies.items()}
    stacks = {part: watched.stack(name) for part, (name, _) in energies.items()}
    if own.form.bias_tables == "first":
        for stack in Stack:
            together = [p for p in shares if stacks[p] is stack and p not in watched.crossing]
            common = torch.stack([shares[part] for part in together]).sum(0)
            tables = [part for part in watched.biased if watched.stack(part) is stack]
            shares |= dict.fromkeys([*together, *tables], common)
            stacks |= dict.fromkeys(tables, stack)
    return {part: _best(share, own.heads_of(stacks[part])) for part, share in shares.items()}


def _channels(watched: Watched, measured: _Measured, names: list[str], own: Shape) -> Tensor:
    energies = [_energy(watched, measured, name) for name in names if watched.axes(name)[1] is Axis.WIDTH]
    head = watched.parts.head.get_parameter("weight").double()
    energies.append(measured.last.covariance(centred=True)[:, 0, 0] * (head - head.mean(0)).square().sum(0))
    importance = torch.stack([energy / energy.sum().clamp_min(1e-30) for energy in energies]).sum(0)
    if not own.form.computed:
        return _best(importance, own.width)
    # position codes that are computed have frequencies by the channel's place: each place keeps a channel of about its
    # own frequency
    first = torch.arange(own.width + 1) * len(importance) // own.width
    ranges = zip(first[:-1].tolist(), first[1:].tolist(), strict=True)
    best = [start + int(importance[start:end].argmax()) for start, end in ranges]
    return torch.tensor(best, device=importance.device)


def _inside(watched: Watched, measured: _Measured, part: str, size: int) -> dict[Axis, Tensor]:
    """Axis -> [heads, size, E]."""
    of = {watched.axes(name): name for name in measured.read if parent(name) == part}
    query, key = (of[axis, Axis.WIDTH] for axis in (Axis.QUERY, Axis.KEY))
    output = of[Axis.WIDTH, Axis.VALUE]
    queries, keys = (_roots(measured.given[name].covariance(centred=False)) for name in (query, key))
    left, strength, right = torch.linalg.svd(queries[0] @ keys[0])
    root = strength[:, :size, None].sqrt()
    scale = (size / queries[0].shape[-1]) ** 0.5  # scores are divided by the root of the head's size
    values = _roots(measured.read[output].covariance(centred=False))
    weight = watched.linears[output].weight.double().unflatten(1, (len(root), -1)).transpose(0, 1)  # [H, out, E]
    strongest = torch.linalg.svd(weight @ values[0], full_matrices=False)[2][:, :size]
    return {
        Axis.QUERY: scale * root * (left.mT[:, :size] @ queries[1]),
        Axis.KEY: root * (right[:, :size] @ keys[1]),
        Axis.VALUE: strongest @ values[1],
    }


def _roots(moments: Tensor) -> tuple[Tensor, Tensor]:
    """[H, E, E]: the symmetric square roots of second moments, and their pseudo-inverses."""
    value, vector = torch.linalg.eigh(moments)
    alive = value > _TINY * value[:, -1:]
    root = value.clamp_min(0).sqrt()
    inverse = torch.where(alive, 1 / root.clamp_min(1e-30), 0)
    return (vector * root[:, None, :]) @ vector.mT, (vector * inverse[:, None, :]) @ vector.mT
