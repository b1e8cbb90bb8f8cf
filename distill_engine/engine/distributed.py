"""The process group: who I am, and the few collectives the rest of the program needs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

Value = TypeVar("Value")

_REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class LaunchError(RuntimeError):
    """The environment does not describe a usable process group."""


class RanksApartError(RuntimeError):
    """The ranks are not at the same step."""


@dataclass(frozen=True)
class RankFacts:
    """This process among the others."""

    rank: int
    world_size: int
    local_rank: int


def rank_facts(environment: MutableMapping[str, str]) -> RankFacts:
    """Read the facts that a launcher left; without any, this is a group of one, and its address is filled in.

    Raises LaunchError if some of the variables are there and others are not, or if one is not a number.
    """
    present = [name for name in _REQUIRED if name in environment]
    if not {"RANK", "WORLD_SIZE"} & set(present):
        environment.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        environment["MASTER_PORT"] = str(free_port())
    missing = [name for name in _REQUIRED if name not in environment]
    if missing:
        raise LaunchError(
            f"the launcher set {', '.join(present)} but not {', '.join(missing)}. "
            "Start with `deepspeed`, or set all five variables."
        )
    try:
        facts = RankFacts(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except ValueError as error:
        raise LaunchError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}.") from error
    if not 0 <= facts.rank < facts.world_size:
        raise LaunchError(f"RANK is {facts.rank} but WORLD_SIZE is {facts.world_size}: ranks count from 0.")
    return facts


def free_port() -> int:
    """A TCP port that is free on the loopback interface now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """The running process group."""

    def __init__(self, facts: RankFacts) -> None:
        self.rank = facts.rank
        self.world_size = facts.world_size
        self.local_rank = facts.local_rank
        self.device = torch.device(get_accelerator().device_name(facts.local_rank))

    def supports(self, dtype: torch.dtype) -> bool:
        """Whether this accelerator can train in a floating type."""
        return dtype in get_accelerator().supported_dtypes()

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise sum over ranks, as a new tensor."""
        total = tensor.clone()
        if self.world_size > 1:
            dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total

    def agree(self, step: int, stop: bool, seconds: float) -> tuple[bool, float]:
        """One reduction per step: whether any rank wants to stop, and rank 0's clock.

        Raises RanksApartError on every rank if they are not all at one step: collectives of different steps would
        otherwise pair up silently.
        """
        if self.world_size == 1:
            return stop, seconds
        mine = [float(stop), seconds if self.rank == 0 else 0.0, float(step), float(step) ** 2]
        summed = self.sum(torch.tensor(mine, dtype=torch.float64, device=self.device))
        stops, agreed_seconds, steps, squares = summed.tolist()
        if squares * self.world_size != steps**2:  # true unless all are equal; exact up to ranks * step^2 = 2^53
            raise RanksApartError(
                f"rank {self.rank} is at step {step}, the {self.world_size} ranks together at {steps:g} (the sum of "
                "their steps): a rank has skipped or repeated a step. Start the same command again to resume."
            )
        return stops > 0, agreed_seconds

    def broadcast(self, value: Value) -> Value:
        """Rank 0's value on every rank (picklable)."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in rank order, on every rank (picklable)."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()


def start(timeout: timedelta = timedelta(minutes=30)) -> Ranks:
    """Join the process group described by the environment and choose this rank's device.

    Raises LaunchError for a contradictory environment.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    facts = rank_facts(os.environ)
    accelerator = get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    if on_cpu:
        _share_cores(os.environ)
    else:
        if facts.local_rank >= accelerator.device_count():
            raise LaunchError(
                f"rank {facts.rank} wants device {facts.local_rank}, but this node shows "
                f"{accelerator.device_count()}. Start one rank per device."
            )
        accelerator.set_device(facts.local_rank)
    if not dist.is_initialized():
        # Without this DeepSpeed compiles a shared-memory collective on first use on a CPU: it needs a compiler, and
        # a killed build leaves a lock on which every later start hangs.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "gloo" if on_cpu else accelerator.communication_backend_name()
        deepspeed.init_distributed(
            dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False, distributed_port=0
        )
    return Ranks(facts)


def _share_cores(environment: Mapping[str, str]) -> None:
    """Divide this node's cores among its ranks, unless the user or the launcher has: ranks that each take every core
    are many times slower than one."""
    if "OMP_NUM_THREADS" in environment:
        return
    here = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // here))


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
