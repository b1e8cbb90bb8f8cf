"""The two helper parts, each through real files."""

import json
import random

import numpy as np
import pytest
import torch

from distill_engine.checkpoint.parts import JsonPart, RngPart
from distill_engine.checkpoint.trust import scan_pickles
from distill_engine.train.policies import EarlyStopping


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), *np.random.randn(3), *torch.randn(3).tolist()]


def test_random_streams_go_on_where_they_were(tmp_path):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    draws()  # leaves Python's and numpy's cached second Gaussian behind
    RngPart(rank=3).save(tmp_path)
    expected = draws()
    assert draws() != expected
    RngPart(rank=3).load(tmp_path)
    assert draws() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["rank_00003.pt"]
    assert scan_pickles(tmp_path, allowed=[]) == 1


def test_random_state_of_a_gpu_is_not_silently_dropped(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so nothing would be dropped")
    part = RngPart(rank=0)
    part.save(tmp_path)
    path = tmp_path / "rank_00000.pt"
    torch.save({**torch.load(path, weights_only=True), "cuda": torch.zeros(16, dtype=torch.uint8)}, path)
    with pytest.raises(ValueError, match="saved with a GPU"):
        part.load(tmp_path)


def test_random_state_of_a_missing_rank_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="rank_00001"):
        RngPart(rank=1).load(tmp_path)
    for rank in (0, 2):
        RngPart(rank).save(tmp_path)
    for rank in (1, 3):
        with pytest.raises(FileNotFoundError, match=f"rank_0000{rank}"):
            RngPart(rank).load(tmp_path)


def test_ranks_that_join_get_streams_of_their_own_always_the_same(tmp_path):
    """Two ranks wrote; four go on: the old ones as they were, the new ones with streams that nobody had."""
    for rank in (0, 1):
        torch.manual_seed(rank)
        random.seed(rank)
        np.random.seed(rank)
        RngPart(rank).save(tmp_path)
    found = []
    for rank in (0, 1, 2, 3, 2, 3):
        RngPart(rank).load(tmp_path)
        found.append(draws())
    assert found[2:4] == found[4:]
    assert len({tuple(values) for values in found}) == 4
    torch.manual_seed(0)
    torch.rand(1)
    RngPart(0).save(tmp_path)  # as a later checkpoint does
    RngPart(2).load(tmp_path)
    assert draws() not in found


def test_rank_0_writes_json_and_every_rank_reads_it(tmp_path):
    stopping = EarlyStopping(3, "min")
    stopping.observe(2.5)
    stopping.observe(2.75)
    JsonPart(stopping, rank=1).save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    JsonPart(stopping, rank=0).save(tmp_path)
    other = EarlyStopping(3, "min")
    JsonPart(other, rank=1).load(tmp_path)
    assert other.state_dict() == stopping.state_dict()
    assert json.loads((tmp_path / "state.json").read_text())["bad_validations"] == 1
