"""The process group of the ranks that share a node with this one."""

from __future__ import annotations

import socket

import torch.distributed as dist

from distill_engine.cluster.facts import ClusterError
from distill_engine.cluster.nodes import Place, node_members
from distill_engine.engine.distributed import LaunchError, Ranks


def nodes_of(ranks: Ranks) -> list[list[int]]:
    """The ranks of each node. Collective. Raises LaunchError on every rank where nodes cannot be told apart."""
    mine = Place(socket.gethostname(), ranks.node, ranks.local_rank, ranks.local_size)
    try:
        return node_members(ranks.gather(mine))
    except ClusterError as error:
        raise LaunchError(str(error)) from error


def node_group(ranks: Ranks) -> dist.ProcessGroup:
    """The group of this node's ranks; that of all ranks where there is one node. Collective.

    Raises LaunchError on every rank where nodes cannot be told apart.
    """
    nodes = nodes_of(ranks)
    world = dist.group.WORLD
    assert world is not None, "engine.distributed.start has joined it"
    if len(nodes) == 1:
        return world
    # every rank has to take part in making every group, in one order
    groups = [dist.new_group(members, timeout=ranks.timeout) for members in nodes]
    return next(group for group, members in zip(groups, nodes, strict=True) if ranks.rank in members)
