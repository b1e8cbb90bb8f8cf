"""Which ranks share a node, from what launchers and machines say."""

import pytest

from distill_engine.cluster.facts import ClusterError
from distill_engine.cluster.nodes import Place, node_members


def places(*rows) -> list[Place]:
    return [Place(*row) for row in rows]


# name -> (host, node, local rank, local size) of every rank, and the groups
CASES = {
    "two nodes": ([("a", 0, 0, 2), ("a", 0, 1, 2), ("b", 1, 0, 2), ("b", 1, 1, 2)], [[0, 1], [2, 3]]),
    "one rank": ([("a", 0, 0, 1)], [[0]]),
    "dealt out in turn": ([("a", 0, 0, 2), ("b", 1, 0, 2), ("a", 0, 1, 2), ("b", 1, 1, 2)], [[0, 2], [1, 3]]),
    "unequal": ([("a", 0, 0, 3), ("a", 0, 1, 3), ("a", 0, 2, 3), ("b", 1, 0, 1)], [[0, 1, 2], [3]]),
    "two nodes on one machine": ([("a", 0, 0, 2), ("a", 0, 1, 2), ("a", 1, 0, 2), ("a", 1, 1, 2)], [[0, 1], [2, 3]]),
    # a launcher without numbers of nodes: rank // local size, which is wrong for 1 + 3 ranks
    "numbered by division": ([("a", 0, 0, 1), ("b", 0, 0, 3), ("b", 0, 1, 3), ("b", 1, 2, 3)], [[0], [1, 2, 3]]),
    "no sizes told": ([("a", 0, 0, 1), ("a", 0, 1, 2), ("b", 2, 0, 1), ("b", 1, 1, 2)], [[0, 1], [2, 3]]),
}


@pytest.mark.parametrize("name", CASES)
def test_ranks_of_a_node_are_found(name):
    rows, groups = CASES[name]
    assert node_members(places(*rows)) == groups


def test_no_group_spans_two_machines_even_if_the_launcher_says_so():
    rows = [("a", 0, 0, 2), ("b", 0, 0, 2), ("a", 0, 1, 2), ("b", 0, 1, 2)]
    assert node_members(places(*rows)) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    "rows, said",
    [
        # a container with a name of its own for every rank
        ([("c0", 0, 0, 2), ("c1", 0, 1, 2)], "1 of them are on c1, and rank 1 is number 1 of 2"),
        # machines that all call themselves localhost
        ([("l", 0, 0, 2), ("l", 0, 1, 2), ("l", 0, 0, 2), ("l", 0, 1, 2)], "rank 0 is number 0, rank 1 is number 1"),
    ],
)
def test_a_node_that_cannot_be_told_is_refused_with_what_to_do(rows, said):
    with pytest.raises(ClusterError) as caught:
        node_members(places(*rows))
    assert said in str(caught.value)
    assert "another teacher.placement than node" in str(caught.value)
