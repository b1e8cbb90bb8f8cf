"""What the linear maps and norms of a teacher read and give on real examples, position by position."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill_engine.families.protocol import Family, Parts
from distill_engine.families.shape import Axis
from distill_engine.values import Batch, Stack


@dataclass(frozen=True)
class Norm:
    """A norm, what it reads and what it gives at N positions that count: [N, D] each."""

    name: str
    read: Tensor
    given: Tensor


@dataclass(frozen=True)
class Linear:
    """A linear map of a layer, what it reads [N, in] and gives [N, out], and the norm whose output it reads, if any."""

    name: str
    read: Tensor
    given: Tensor
    norm: Norm | None


@dataclass(frozen=True)
class Seen:
    """One batch: norms, linear maps, and what the vocabulary's map reads [N, D], before any scale, and its norm."""

    norms: list[Norm] = field(default_factory=list)
    linears: list[Linear] = field(default_factory=list)
    last: list[tuple[Tensor, Norm | None]] = field(default_factory=list)


class Watched:
    """A teacher in eval mode, in float32, whose layers' inner values can be looked at.

    linears   name -> linear map of a layer         norms   name -> norm, of layers and outside of them
    crossing  names of attentions to the encoder    biased  names of those with a table of position biases
    """

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.model, self.family = model, family
        self.parts: Parts = family.parts(model)
        named: Mapping[str, Any] = dict(model.named_modules())
        linears = {name: module for name, module in named.items() if _last(name) in family.maps}
        self.linears = {name: module for name, module in linears.items() if isinstance(module, nn.Linear)}
        self.norms = {name: module for name, module in named.items() if _is_norm(module)}
        encoder = set(model.get_encoder().modules())
        self._encoders = {name for name, module in named.items() if module in encoder}
        crossing = {module for stack in self.parts.stacks.values() for module in stack.cross_attention}
        self.crossing = {name for name, module in named.items() if module in crossing}
        self.biased = [parent(name) for name in named if family.maps.get(_last(name)) == (Axis.BUCKET, Axis.HEAD)]
        self._of_contexts = set(self._encoders)
        for name in self.linears:
            if parent(name) in self.crossing and self.axes(name)[0] in (Axis.KEY, Axis.VALUE):
                self._of_contexts.add(name)

    def axes(self, name: str) -> tuple[Axis, Axis]:
        """What rows and columns of a linear map run over."""
        return self.family.maps[_last(name)]

    def stack(self, name: str) -> Stack:
        """The stack of a module."""
        return Stack.ENCODER if name in self._encoders else Stack.DECODER

    @torch.no_grad()
    def look(
        self, batches: Iterable[Batch], linears: Collection[str] = (), norms: Collection[str] = ()
    ) -> Iterator[Seen]:
        """What happens on each batch in these linear maps and norms; the norm that a map reads is told if it is one of
        these."""
        device = next(self.model.parameters()).device
        for batch in batches:
            here = batch.to(device)
            masks = {True: here.context_mask, False: here.label_mask}
            of = lambda name, masks=masks: masks[name in self._of_contexts]  # noqa: E731  # type: ignore[misc]
            with self._hooked(of, linears, norms) as (seen, made):
                output = self.parts.decode(here, self.parts.encode(here))
                seen.last.append((output[here.label_mask], made.get(output.data_ptr())))
                yield seen

    @contextmanager
    def _hooked(
        self, mask: Callable[[str], Tensor], linears: Collection[str], norms: Collection[str]
    ) -> Iterator[tuple[Seen, dict[int, Norm]]]:
        """Inputs are known by where they lie: outputs of norms are kept until the end, so no place is used twice."""
        seen, made, kept = Seen(), dict[int, Norm](), list[Tensor]()

        def normed(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
                norm = Norm(name, given[0][mask(name)], output[mask(name)])
                seen.norms.append(norm)
                made[output.data_ptr()] = norm
                kept.append(output)

            return hook

        def mapped(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
                at = mask(name)
                seen.linears.append(Linear(name, given[0][at], output[at], made.get(given[0].data_ptr())))

            return hook

        handles = [self.norms[name].register_forward_hook(normed(name)) for name in norms]
        handles += [self.linears[name].register_forward_hook(mapped(name)) for name in linears]
        try:
            yield seen, made
        finally:
            for handle in handles:
                handle.remove()


def parent(name: str) -> str:
    """The attention or feed-forward part that a linear map belongs to."""
    return name.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1 and not isinstance(module, nn.Conv1d)


def normalised(module: Any, read: Tensor) -> Tensor:
    """[N, D]: what a norm makes of these channels, before its weight and bias."""
    if isinstance(module, nn.LayerNorm):
        return nn.functional.layer_norm(read, read.shape[-1:], eps=module.eps)
    eps: float = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return read * torch.rsqrt(read.square().mean(-1, keepdim=True) + eps)
