"""Bytes of collectives, as rank 2 of four ranks on two nodes sees them (no data moves: the backend is torch's fake)."""

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from distill_engine.engine.traffic import Traffic

ELEMENTS = 1000  # of each rank's part, fp32
PART = 4 * ELEMENTS


@pytest.fixture(scope="module", autouse=True)
def ranks():
    dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def own_node(ranks):
    return dist.new_group([2, 3])


def part() -> torch.Tensor:
    return torch.zeros(ELEMENTS)


def whole(size: int = 4) -> torch.Tensor:
    return torch.zeros(size * ELEMENTS)


# name -> call, bytes that arrive, name of the operation
OVER_ALL = {
    "all_gather_into_tensor": (lambda: dist.all_gather_into_tensor(whole(), part()), 3 * PART, "_allgather_base_"),
    "all_gather": (lambda: dist.all_gather([part() for _ in range(4)], part()), 3 * PART, "allgather_"),
    "reduce_scatter": (lambda: dist.reduce_scatter_tensor(part(), whole()), 3 * PART, "_reduce_scatter_base_"),
    "all_reduce": (lambda: dist.all_reduce(whole()), 6 * PART, "allreduce_"),
    "broadcast": (lambda: dist.broadcast(part(), src=0), PART, "broadcast_"),
    "broadcast of one's own": (lambda: dist.broadcast(part(), src=2), 0, "broadcast_"),
    "barrier": (lambda: dist.barrier(), 0, "barrier"),
}


@pytest.mark.parametrize("name", OVER_ALL)
@pytest.mark.parametrize(("nodes", "borders"), [([[0, 1], [2, 3]], True), ([[0], [1, 2, 3]], False)])
def test_what_arrives_comes_from_the_rank_before(name, nodes, borders):
    call, arriving, operation = OVER_ALL[name]
    with Traffic(2, nodes) as moved:
        call()
        torch.ones(3) + 1  # no collective
    assert (moved.between, moved.within) == ((arriving, 0) if borders else (0, arriving))
    assert moved.calls == {operation: 1}


def test_a_group_within_a_node_brings_nothing_from_outside(own_node):
    with Traffic(2, [[0, 1], [2, 3]]) as moved:
        dist.all_gather_into_tensor(whole(2), part(), group=own_node)
        dist.broadcast(part(), src=3, group=own_node)
        dist.broadcast(part(), src=2, group=own_node)
    assert (moved.within, moved.between) == (2 * PART, 0)


def test_nothing_is_counted_outside_the_block():
    with Traffic(2, [[0, 1], [2, 3]]) as moved:
        pass
    dist.all_reduce(part())
    assert (moved.within, moved.between, moved.calls) == (0, 0, {})


def test_a_collective_that_is_not_known_is_an_error_and_not_nought_bytes():
    with pytest.raises(ValueError, match="alltoall_base_ are not known"), Traffic(2, [[0, 1], [2, 3]]):
        dist.all_to_all_single(whole(), whole())
