"""Nodes really call each other over loopback, each from an address of its own; whoever is not reached is named."""

import socket
import threading
from dataclasses import replace
from functools import partial

import pytest

from distill_engine.cluster.facts import LOOPBACK, ClusterFacts, port_candidates
from launcher import reachability
from launcher.reachability import unreached_nodes

NODES = ("n0", "n1", "n2")


def facts(rank: int, job: str, nodes: int = 3, port: int = 0) -> ClusterFacts:
    return ClusterFacts(rank, nodes, 0, 1, rank, nodes, LOOPBACK, port, "srun", job)


def connect_from(rank: int, blocked: dict[int, str], place: tuple[str, int], seconds: float) -> socket.socket:
    """From 127.0.0.<rank + 1>; calls of the ranks in `blocked` to that address time out, as a firewall makes them."""
    if blocked.get(rank) == place[0]:
        raise TimeoutError(110, "Connection timed out")
    return socket.create_connection(place, seconds, source_address=(f"127.0.0.{rank + 1}", 0))


def all_try(job: str, ranks=(0, 1, 2), blocked=None, seconds: float = 10.0, port: int = 0) -> dict[str, dict]:
    """node -> what it could not reach"""
    found: dict[str, dict] = {}

    def one(rank: int) -> None:
        connect = partial(connect_from, rank, blocked or {})
        found[f"n{rank}"] = unreached_nodes(facts(rank, job, port=port), f"n{rank}", NODES, seconds, connect)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def test_nodes_that_reach_each_other_say_nothing_and_are_quick():
    assert all_try("reach-1", seconds=600.0) == {"n0": {}, "n1": {}, "n2": {}}, "nobody waits for the limit"


def test_alone_there_is_nobody_to_reach():
    assert unreached_nodes(facts(0, "", nodes=1), "n0", NODES[:1]) == {}


def test_the_pair_between_which_a_firewall_stands_is_named():
    found = all_try("reach-2", blocked={1: "127.0.0.3"})
    assert found["n0"] == found["n2"] == {}
    assert list(found["n1"]) == ["n2"] and "127.0.0.3" in found["n1"]["n2"] and "timed out" in found["n1"]["n2"]


def test_a_node_that_does_not_reach_the_head_node_says_so_and_the_others_still_try_each_other():
    found = all_try("reach-3", blocked={2: LOOPBACK}, seconds=1.0)
    assert found["n0"] == found["n1"] == {}
    assert list(found["n2"]) == ["n0"] and f"{LOOPBACK} port" in found["n2"]["n0"]


def test_a_head_node_that_says_nothing_is_named_by_all():
    found = all_try("reach-4", ranks=(1, 2), seconds=0.5)
    assert [list(one) for one in found.values()] == [["n0"], ["n0"]]
    assert "refused" in found["n1"]["n0"]


def test_a_node_that_never_comes_holds_up_the_others_only_for_the_limit():
    assert all_try("reach-5", ranks=(0, 1), seconds=0.5) == {"n0": {}, "n1": {}}


def test_while_the_head_node_waits_it_tells_for_whom(monkeypatch):
    monkeypatch.setattr(reachability, "SAID_AFTER_SECONDS", 0.1)
    told: list[list[str]] = []
    come = threading.Event()

    def tell(missing, _waited) -> None:
        told.append(list(missing))
        come.set()

    def late() -> None:
        come.wait(30)
        unreached_nodes(facts(1, "reach-8", nodes=2), "n1", NODES[:2], 10.0)

    other = threading.Thread(target=late)
    other.start()
    assert unreached_nodes(facts(0, "reach-8", nodes=2), "n0", NODES[:2], 30.0, tell=tell) == {}
    other.join()
    assert told[0] == ["n1"]


def test_other_programs_on_the_ports_are_passed_over(monkeypatch):
    monkeypatch.setattr(reachability, "CALL_SECONDS", 0.3)
    with socket.create_server(("", port_candidates("reach-6")[0])):
        assert all_try("reach-6") == {"n0": {}, "n1": {}, "n2": {}}


def test_a_port_that_the_user_chose_and_another_program_holds_is_told():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        found = unreached_nodes(replace(facts(0, "reach-7"), master_port=port), "n0", NODES, 0.5)
    assert list(found) == ["n0"] and str(port) in found["n0"] and "MASTER_PORT" in found["n0"]


@pytest.mark.parametrize("said", [b"", b"no json\n", b"[]\n", b"{}\n", b'{"job": "another", "node": "x", "port": 1}\n'])
def test_strangers_at_the_head_nodes_port_disturb_nobody(said):
    job = f"reach-stranger-{said!r}"
    done = threading.Event()

    def visit() -> None:
        while not done.is_set():
            for port in port_candidates(job)[:1]:
                try:
                    with socket.create_connection((LOOPBACK, port), 1) as line:
                        line.sendall(said)
                except OSError:
                    continue

    stranger = threading.Thread(target=visit)
    stranger.start()
    try:
        assert all_try(job) == {"n0": {}, "n1": {}, "n2": {}}
    finally:
        done.set()
        stranger.join()
