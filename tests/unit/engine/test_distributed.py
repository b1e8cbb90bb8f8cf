"""Who am I: what launchers leave in the environment, and what is refused."""

from __future__ import annotations

import pytest

from distill_engine.engine.distributed import LaunchError, RankFacts, _share_cores, rank_facts

COMPLETE = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_a_launchers_facts_are_taken_as_they_are() -> None:
    environment = dict(COMPLETE)
    assert rank_facts(environment) == RankFacts(3, 8, 1)
    assert environment == COMPLETE


def test_without_a_launcher_it_is_a_group_of_one_with_an_address() -> None:
    environment: dict[str, str] = {}
    assert rank_facts(environment) == RankFacts(0, 1, 0)
    assert environment["MASTER_ADDR"] == "127.0.0.1" and 0 < int(environment["MASTER_PORT"]) < 65536


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_the_facts_is_a_contradiction(missing: str) -> None:
    environment = {name: value for name, value in COMPLETE.items() if name != missing}
    with pytest.raises(LaunchError, match=missing):
        rank_facts(environment)


@pytest.mark.parametrize(("name", "value"), [("RANK", "one"), ("RANK", "8"), ("RANK", "-1"), ("WORLD_SIZE", "")])
def test_impossible_facts_are_refused(name: str, value: str) -> None:
    with pytest.raises(LaunchError, match=r"RANK|WORLD_SIZE"):
        rank_facts(COMPLETE | {name: value})


def test_the_cores_of_a_node_are_divided_among_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    _share_cores({"LOCAL_SIZE": "4"})
    _share_cores({"LOCAL_WORLD_SIZE": "32"})
    _share_cores({})
    _share_cores({"OMP_NUM_THREADS": "2", "LOCAL_SIZE": "4"})
    assert chosen == [4, 1, 16]
