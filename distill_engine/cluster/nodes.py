"""Which ranks share a node? From what every rank says about itself. Pure; standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from distill_engine.cluster.facts import ClusterError


@dataclass(frozen=True)
class Place:
    """Where one rank runs: its machine's name, and the launcher's word (see ClusterFacts)."""

    host: str
    node: int
    local_rank: int
    local_size: int


def node_members(places: Sequence[Place]) -> list[list[int]]:
    """The ranks of each node, lowest first; `places` has one entry per rank, in rank order.

    The launcher's numbering of nodes is believed where it fits the ranks' places on their nodes: several nodes may be
    one machine (a simulated cluster). Some launchers do not number nodes, and then the machines' names decide. No
    group ever spans two machines. Raises ClusterError where neither makes whole nodes: ranks of one node that a
    container each gives another name, say.
    """
    by_launcher = _grouped(places, lambda place: (place.host, place.node))
    if all(_is_whole(places, group) and len(group) == places[group[0]].local_size for group in by_launcher):
        return by_launcher
    by_name = _grouped(places, lambda place: place.host)
    torn = [group for group in by_name if not _is_whole(places, group)]
    if not torn:
        return by_name
    group = torn[0]
    shown = ", ".join(f"rank {rank} is number {places[rank].local_rank}" for rank in group[:8])
    raise ClusterError(
        f"Which ranks share a node cannot be told: {len(group)} of them are on {places[group[0]].host}, and {shown} of "
        f"{places[group[0]].local_size} on its node. The ranks of a node count from 0, and no other has its name. Give "
        "every node one host name, start with srun or torchrun, or choose another teacher.placement than node."
    )


def _grouped(places: Sequence[Place], key: Callable[[Place], Hashable]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for rank, place in enumerate(places):
        groups[key(place)].append(rank)
    return list(groups.values())


def _is_whole(places: Sequence[Place], group: Sequence[int]) -> bool:
    """Whether the group's ranks are all numbers of one node, from 0."""
    return sorted(places[rank].local_rank for rank in group) == list(range(len(group)))
