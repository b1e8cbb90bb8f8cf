"""Ranks of one job find each other, and only each other, when nobody gave them a port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from distill_engine.cluster.facts import LOOPBACK, ClusterError, ClusterFacts, port_candidates
from distill_engine.engine import rendezvous, roll_call
from distill_engine.engine.rendezvous import meet

SHORT = timedelta(seconds=20)


def facts(rank: int, job: str, world: int = 2, port: int = 0) -> ClusterFacts:
    return ClusterFacts(rank, world, rank, world, 0, 1, LOOPBACK, port, "srun", job)


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """Another program on a port; it answers nothing."""
    with socket.create_server(("", port)) as other:
        yield other


def test_two_ranks_meet_even_when_the_other_one_comes_first():
    found = []
    early = threading.Thread(target=lambda: found.append(meet(facts(1, "meet-1"), SHORT)))
    early.start()
    store = meet(facts(0, "meet-1"), SHORT)
    early.join()
    found[0].set("word", "said")
    assert store.get("word") == b"said"


def test_a_taken_port_is_passed_over_by_both(monkeypatch):
    monkeypatch.setattr(rendezvous, "_SECONDS", 0.3)
    with listening(port_candidates("meet-2")[0]):
        store = meet(facts(0, "meet-2"), SHORT)
        assert meet(facts(1, "meet-2"), SHORT).port == store.port


def test_two_jobs_with_the_same_ports_do_not_mix(monkeypatch):
    """Both jobs look at the same ports; each rank 1 must end at its own rank 0."""
    ports = port_candidates("meet-3")
    monkeypatch.setattr("distill_engine.cluster.facts.port_candidates", lambda _job: ports)
    stores = {job: meet(facts(0, job), SHORT) for job in ("job-a", "job-b")}
    assert stores["job-a"].port != stores["job-b"].port
    for job, store in stores.items():
        assert meet(facts(1, job), SHORT).port == store.port


def test_alone_any_free_port_will_do():
    stores = [meet(facts(0, "", world=1), SHORT) for _ in range(3)]
    assert len({store.port for store in stores}) == 3


def test_a_port_that_the_user_chose_is_the_only_one_tried(monkeypatch):
    with listening(0) as other:
        port = other.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"tried {port}.*set MASTER_PORT"):
            meet(facts(0, "meet-4", port=port), SHORT)


def test_a_rank_that_finds_nobody_says_where_it_looked():
    missing = replace(facts(1, "meet-5"), master_addr="no-such-host.invalid")
    with pytest.raises(ClusterError, match=r"did not find rank 0 at no-such-host\.invalid.*MASTER_ADDR"):
        meet(missing, timedelta(seconds=0))


def test_while_rank_0_is_waited_for_one_rank_of_each_node_says_so(monkeypatch, capsys):
    monkeypatch.setattr(roll_call, "SAID_AFTER_SECONDS", 0.001)
    for rank in (2, 3):
        one = replace(facts(rank, "meet-6", world=4), local_rank=rank - 2, local_size=2, node=1, nodes=2)
        with pytest.raises(ClusterError):
            meet(one, SHORT, timedelta(seconds=0.3))
    (first, *_) = said = capsys.readouterr().err.splitlines()
    assert first.startswith(f"waiting for rank 0 at {LOOPBACK}: not found after") and "refused" in first
    assert all("up to 0 s" in line for line in said) and len(said) < 12, "ever more seldom"
