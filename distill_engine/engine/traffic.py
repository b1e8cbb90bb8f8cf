"""How many bytes collectives bring to this rank, and how many of them come from another node.

Counted where torch hands a collective to its backend, so whatever DeepSpeed does is seen. What a collective of `n`
ranks over `whole` bytes brings to one of them is that of a ring, which is what NCCL and gloo use for large messages:

    all-gather, reduce-scatter   whole * (n - 1) / n
    all-reduce                   2 * whole * (n - 1) / n
    broadcast                    whole, except at its root

It comes from the rank before it in the ring, so from another node exactly where that one lives there. A collective
within one node brings nothing from outside, whatever the algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_NAMESPACE = "c10d::"
# Collective -> position of the tensors that have the whole, and how often the whole travels around the ring.
_WHOLE = {
    "_allgather_base_": (0, 1),
    "allgather_": (0, 1),
    "allgather_into_tensor_coalesced_": (0, 1),
    "_reduce_scatter_base_": (1, 1),
    "reduce_scatter_": (1, 1),
    "reduce_scatter_tensor_coalesced_": (1, 1),
    "allreduce_": (0, 2),
    "allreduce_coalesced_": (0, 2),
    "broadcast_": (0, 1),
}
_SILENT = {"barrier"}


class Traffic(TorchDispatchMode):
    """Counts the collectives of the block that it is the `with` of; only of the thread that entered it.

    within, between  bytes that came to this rank from its own node, and from others
    calls            name of a collective -> how often it was called
    """

    def __init__(self, rank: int, nodes: Sequence[Sequence[int]]) -> None:
        """`nodes` has the ranks of each node."""
        super().__init__()
        self._rank = rank
        self._node_of: Mapping[int, int] = {member: number for number, node in enumerate(nodes) for member in node}
        self.within = self.between = 0
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Let every operation pass, and count those that are collectives. Raises ValueError for an unknown one."""
        name = func.name().split(".")[0]
        if name.startswith(_NAMESPACE):
            self._count(name.removeprefix(_NAMESPACE), args)
        call: Callable[..., Any] = func
        return call(*args, **(kwargs or {}))

    def _count(self, name: str, args: Sequence[Any]) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        if name in _SILENT:
            return
        if name not in _WHOLE:
            raise ValueError(f"the bytes of the collective {name} are not known: its place is in {__file__}.")
        place, rounds = _WHOLE[name]
        ring = dist.get_process_group_ranks(next(dist.ProcessGroup.unbox(one) for one in args if _is_group(one)))
        whole = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(args[place]))
        if name == "broadcast_":
            arriving = 0 if ring[args[2]] == self._rank else whole
        else:
            arriving = rounds * whole * (len(ring) - 1) // len(ring)
        before = ring[ring.index(self._rank) - 1]
        if self._node_of[before] == self._node_of[self._rank]:
            self.within += arriving
        else:
            self.between += arriving


def _is_group(value: Any) -> bool:
    return not isinstance(value, (Tensor, list, int)) and "ProcessGroup" in str(value._type())


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a tensor or of nested lists."""
    if isinstance(value, Tensor):
        yield value
    else:
        for one in value:
            yield from _tensors(one)
