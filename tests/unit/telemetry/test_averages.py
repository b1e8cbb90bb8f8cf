"""Averages are exact, need one collective, and start over once read."""

import json
import math
import socket
import subprocess
import sys

import pytest
import torch

from distill_engine.telemetry.averages import Averages, RanksDisagreeError


def one_rank(tensor):
    return tensor


class Ranks:
    """Adds what several Averages pack, as an all-reduce would: collects first, then answers with the sum."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.calls = 0

    def reduce(self):
        packed = []
        for rank in self.ranks:
            with pytest.raises(_Seen):  # leaves the averages as they were
                rank.reduce(lambda tensor: packed.append(tensor.clone()) or _stop())
        total = torch.stack(packed).sum(0)
        return [rank.reduce(self._answer(total)) for rank in self.ranks]

    def _answer(self, total):
        def answer(tensor):
            self.calls += 1
            assert tensor.dtype == torch.float64 and tensor.dim() == 1
            return total

        return answer


class _Seen(Exception):
    pass


def _stop():
    raise _Seen


def test_average_is_sum_over_count():
    averages = Averages()
    averages.add("train/total", torch.tensor(3.0), torch.tensor(2))
    averages.add("train/total", torch.tensor(5.0, dtype=torch.float16), 2)
    assert averages.reduce(one_rank) == {"train/total": 2.0}


def test_reduce_starts_over_and_keeps_declared_names():
    averages = Averages(names=["a"])
    averages.add("a", torch.tensor(1.0), 1)
    averages.add("b", torch.tensor(1.0), 1)
    assert averages.reduce(one_rank) == {"a": 1.0, "b": 1.0}
    assert averages.reduce(one_rank) == {}
    averages.add("a", torch.tensor(7.0), 1)
    assert averages.reduce(one_rank) == {"a": 7.0}


def test_one_collective_whatever_the_number_of_names():
    ranks = [Averages(names=["y", "x"]), Averages()]
    for name in ("x", "y", "z"):
        ranks[0].add(name, torch.tensor(1.0), 1)
    for name in ("z", "y", "x"):
        ranks[1].add(name, torch.tensor(4.0), 2)
    group = Ranks(ranks)
    first, second = group.reduce()
    assert first == second == {"x": 5 / 3, "y": 5 / 3, "z": 5 / 3}
    assert group.calls == 2  # one per rank


def test_a_declared_name_that_one_rank_never_meets():
    ranks = [Averages(names=["seen"]), Averages(names=["seen"])]
    ranks[0].add("seen", torch.tensor(6.0), 3)
    assert Ranks(ranks).reduce() == [{"seen": 2.0}, {"seen": 2.0}]


def test_count_zero_everywhere_leaves_the_name_out():
    averages = Averages(names=["never"])
    averages.add("zero", torch.tensor(0.0), torch.tensor(0.0))
    averages.add("kept", torch.tensor(1.0), 1)
    assert averages.reduce(one_rank) == {"kept": 1.0}


def test_ranks_with_other_names_are_found_out():
    ranks = [Averages(names=["a"]), Averages(names=["b"])]
    with pytest.raises(RanksDisagreeError, match=r"this one holds \['a'\]"):
        Ranks(ranks).reduce()


def test_sums_keep_float64_precision_over_many_small_additions():
    averages = Averages()
    for _ in range(1000):
        averages.add("x", torch.tensor(1e-9), 0)
    averages.add("x", torch.tensor(1e9), 1)
    assert averages.reduce(one_rank)["x"] == pytest.approx(1e9 + 1e-6, abs=2e-7)


def test_gradients_are_not_followed_and_inputs_not_kept():
    total = torch.tensor(2.0, requires_grad=True)
    averages = Averages()
    averages.add("x", total * 3, 1)
    averages.add("x", total * 3, 1)
    held = torch.tensor(1.0)
    averages.add("y", held, 1)
    held.fill_(100.0)
    assert averages.reduce(one_rank) == {"x": 6.0, "y": 1.0}


def test_nan_stays_nan():
    averages = Averages()
    averages.add("x", torch.tensor(math.nan), 1)
    assert math.isnan(averages.reduce(one_rank)["x"])


def test_nothing_added_is_nothing_read():
    assert Averages().reduce(one_rank) == {}


_REAL_RANK = """
import json, sys, torch, torch.distributed as dist
from distill_engine.telemetry.averages import Averages

rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
calls = []

def all_reduce(tensor):
    calls.append(tensor.numel())
    dist.all_reduce(tensor)
    return tensor

averages = Averages(names=["valid/a/loss", "valid/b/loss"])
for step in range(3):
    averages.add("train/total", torch.tensor(float(rank + step)), 1)
averages.add(f"valid/{'ab'[rank]}/loss", torch.tensor(10.0 * (rank + 1)), 4)
print(json.dumps([averages.reduce(all_reduce), calls]))
dist.destroy_process_group()
"""


@pytest.mark.multiprocess
def test_two_real_ranks_agree_after_one_all_reduce():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = [
        subprocess.Popen([sys.executable, "-c", _REAL_RANK, str(rank), port], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    answers = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    assert answers[0] == answers[1] == [{"train/total": 1.5, "valid/a/loss": 2.5, "valid/b/loss": 5.0}, [8]]


def test_many_at_once_are_as_one_by_one():
    """Also beside numbers that are added singly, and with counts that the host knows."""
    together, singly = Averages(), Averages()
    for total, count in ((3.0, 2.0), (5.0, 4.0)):
        together.add_all(("a", "b", "c"), torch.tensor([total, 2 * total, total, count, 3 * count]), (1 / 3,))
        together.add("d", torch.tensor(total), count)
        singly.add("a", torch.tensor(total), torch.tensor(count))
        singly.add("b", torch.tensor(2 * total), torch.tensor(3 * count))
        singly.add("c", torch.tensor(total), 1 / 3)
        singly.add("d", torch.tensor(total), count)
    assert together.reduce(one_rank) == singly.reduce(one_rank) and together.reduce(one_rank) == {}
