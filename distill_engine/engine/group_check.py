"""Before any model is loaded: every rank computes right, sums right, and takes about as long as the others.

A few rounds of a little work on each rank's own device, each followed by an all-reduce whose answer is known. Each rank
has its own slot in what is summed, so a wrong number is traced to the rank that gave it. In the all-reduce all ranks
wait for the slowest, so what is compared is the time of the work before it: the device, its link to the host, the host.
A link between two nodes that is slow but works slows down all ranks alike and cannot be told from here.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distill_engine.cluster.facts import hosts_of_ranks
from distill_engine.engine.roll_call import AbsentError, call_roll, describe, exclude

ROUNDS = 5
CHECK_SECONDS = 120.0  # the first collective of a large group sets up its connections
SLOW_FACTOR, SLOW_SECONDS = 4.0, 0.25  # beyond the median of the ranks: this many times, and by this much
_SLOT = 256  # numbers of one rank in the sum: exact in float32, since every other rank adds zeros
_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.0005, 0.02
_ANSWER_SECONDS = 5.0
_NAME_BYTES = 64


class WrongSumError(RuntimeError):
    """An all-reduce gave another answer than the right one."""


@dataclass(frozen=True)
class Check:
    """What the check saw, the same on all ranks.

    hosts    node of each rank
    seconds  of each rank's own work, the median of the rounds
    slow     ranks that need much longer than the median of all
    """

    hosts: tuple[str, ...]
    seconds: tuple[float, ...]
    slow: tuple[int, ...]

    def warning(self) -> str:
        """Names the slow ranks; empty when there are none."""
        if not self.slow:
            return ""
        times = ", ".join(f"{self.seconds[rank] * 1000:.0f} ms" for rank in self.slow)
        return (
            f"slow: {describe(self.slow, self.hosts)} took {times} for a piece of work that takes the median rank "
            f"{median(self.seconds) * 1000:.0f} ms; every step waits for it. {exclude(self.slow, self.hosts)}"
        )


def check_group(rank: int, world_size: int, device: torch.device, seconds: float = CHECK_SECONDS) -> Check:
    """Collective, once for each process group.

    Raises AbsentError naming ranks that do not come or stand still, WrongSumError naming ranks whose numbers arrive
    changed.
    """
    if world_size == 1:
        return Check((own_node(),), (0.0,), ())
    deadline = time.monotonic() + seconds
    hosts = _exchange_hosts(rank, world_size, device, deadline)
    expected = torch.stack([pattern(other, device) for other in range(world_size)])
    wrong = torch.zeros(world_size, dtype=torch.float64, device=device)
    times = []
    for number in range(ROUNDS):
        started = time.perf_counter()
        own_work(device)
        times.append(time.perf_counter() - started)
        slots = torch.zeros_like(expected)
        slots[rank] = contribution(rank, device)
        _sum(slots, f"round {number + 1}", rank, deadline, hosts)
        wrong += (slots != expected).any(dim=1)
    table = torch.zeros(2, world_size, dtype=torch.float64, device=device)
    table[0, rank] = median(times)
    table[1] = wrong
    _sum(table, "the last round", rank, deadline, hosts)
    measured, suspects = table.tolist()
    if any(suspects):
        bad = [other for other, count in enumerate(suspects) if count]
        raise WrongSumError(
            f"The sum over {world_size} ranks is wrong where {describe(bad, hosts)} added: memory or a network card "
            f"there changes numbers. {exclude(bad, hosts)}"
        )
    return Check(tuple(hosts), tuple(measured), slow_ranks(measured))


def slow_ranks(seconds: list[float]) -> tuple[int, ...]:
    """Ranks far beyond the median of all."""
    usual = median(seconds)
    limit = max(SLOW_FACTOR * usual, usual + SLOW_SECONDS)
    return tuple(rank for rank, own in enumerate(seconds) if own > limit)


def pattern(rank: int, device: torch.device) -> Tensor:
    """[_SLOT] what a rank must add: whole numbers up to 1021, exact also where products are computed in TF32."""
    places = torch.arange(_SLOT, device=device, dtype=torch.int64)
    return ((places * 40_503 + rank * 7_919) % 1_021 + 1).to(torch.float32)


def contribution(rank: int, device: torch.device) -> Tensor:
    """[_SLOT] what this rank adds, by way of the device's arithmetic: the pattern multiplied by the identity matrix."""
    return torch.eye(_SLOT, device=device) @ pattern(rank, device)


def own_work(device: torch.device) -> None:
    """Products of matrices on the device and a copy to the host and back, to their end."""
    size = 256 if device.type == "cpu" else 4096
    one = torch.ones(size, size, device=device)
    for _ in range(4):
        one = (one @ one) / size
    one.to("cpu").to(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def own_node() -> str:
    """Name of this machine, as sbatch --exclude wants it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _exchange_hosts(rank: int, world_size: int, device: torch.device, deadline: float) -> list[str]:
    """Every rank's node. Also the first collective: the backend connects its ranks here."""
    names = torch.zeros(world_size, _NAME_BYTES, dtype=torch.uint8, device=device)
    own = own_node().encode()[:_NAME_BYTES]
    names[rank, : len(own)] = torch.tensor(list(own), dtype=torch.uint8, device=device)
    _sum(names, "the beginning", rank, deadline, list(hosts_of_ranks(os.environ, world_size)) or [""] * world_size)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in names.tolist()]


def _sum(tensor: Tensor, which: str, rank: int, deadline: float, hosts: list[str]) -> None:
    """All-reduce in place. When it does not end in time the ranks that no longer answer are named."""
    work, problem, pause = dist.all_reduce(tensor, async_op=True), "", _POLL_SECONDS
    try:
        while not work.is_completed():
            if time.monotonic() >= deadline:
                break
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL_SECONDS)
        else:
            work.wait(timedelta(seconds=max(1.0, deadline - time.monotonic())))
            if tensor.is_cuda:
                torch.cuda.synchronize(tensor.device)
            return
    except RuntimeError as error:  # a connection has broken
        problem = f" ({str(error).strip().splitlines()[0][:200]})"
    # a broken connection is seen by its neighbours first: the others answer when their time is up as well
    absent = _silent(which, rank, len(hosts), max(0.0, deadline - time.monotonic()) + _ANSWER_SECONDS)
    if absent:
        raise AbsentError(
            f"In {which} of the check before training, {describe(absent, hosts)} did not answer: dead, or standing "
            f"still{problem}. {exclude(absent, hosts)}"
        )
    raise AbsentError(
        f"In {which} of the check before training all ranks answer, but their all-reduce does not end{problem}: they "
        "do not reach each other on the network that it uses. NCCL_DEBUG=INFO says which; NCCL_SOCKET_IFNAME and "
        "NCCL_IB_HCA (GLOO_SOCKET_IFNAME on CPUs) choose another."
    )


def _silent(which: str, rank: int, world_size: int, seconds: float) -> list[int]:
    store: Any = dist.distributed_c10d._get_default_store()
    return call_roll(store, f"check/{which}", rank, world_size, seconds)
