"""The process group: who I am, and the few collectives the rest of the program needs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from distill_engine.cluster.facts import ClusterError, ClusterFacts, hosts_of_ranks, read_cluster
from distill_engine.engine.collectives import CollectiveCount, flight_record, groups_reached, record_flights
from distill_engine.engine.group_check import CHECK_SECONDS, WrongSumError, check_group, own_node
from distill_engine.engine.host_memory import keep_freed_memory
from distill_engine.engine.rendezvous import agree_over_mpi, meet
from distill_engine.engine.roll_call import AbsentError, call_roll, describe, exclude

JOIN_VARIABLE, JOIN_SECONDS = "DISTILL_JOIN_SECONDS", 900.0
Value = TypeVar("Value")
LOOK_SECONDS = 0.2
_TIMEOUT = timedelta(minutes=30)


class LaunchError(RuntimeError):
    """The environment does not describe a usable process group."""


class BadRanksError(LaunchError):
    """Other ranks are absent, stand still or change numbers. Whatever waits for them, also the end of the process
    group, may wait for ever: end the process."""


class RanksApartError(RuntimeError):
    """The ranks are not at the same step."""


class Ranks:
    """The running process group."""

    def __init__(self, facts: ClusterFacts, timeout: timedelta = _TIMEOUT) -> None:
        """`timeout` of waiting for another rank."""
        self.rank = facts.rank
        self.world_size = facts.world_size
        self.local_rank = facts.local_rank
        self.local_size = facts.local_size
        self.node = facts.node
        self.timeout = timeout
        self.device = torch.device(get_accelerator().device_name(facts.local_rank))
        self._collective = CollectiveCount()

    def reached(self, *, groups: bool) -> dict[str, Any]:
        """For the report of a hang: this node, and how far our collectives and, if asked, torch's groups have come."""
        own = self._collective
        tracks = {"own": {"number": own.number, "ended": own.number - own.inside, "name": own.name}}
        return {"node": own_node(), "tracks": tracks | (groups_reached() if groups else {})}

    def flights(self) -> bytes | None:
        """See `flight_record`."""
        return flight_record()

    def supports(self, dtype: torch.dtype) -> bool:
        """Whether this accelerator can train in a floating type."""
        return dtype in get_accelerator().supported_dtypes()

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise sum over ranks, as a new tensor."""
        total = tensor.clone()
        if self.world_size > 1:
            with self._collective("sum"):
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
        # from pinned memory: a GPU fetches it by itself, and reading the sum is the only wait for it
        own = torch.tensor(mine, dtype=torch.float64, pin_memory=self.device.type == "cuda")
        summed = self.sum(own.to(self.device, non_blocking=True))
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
        with self._collective("broadcast"):
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in rank order, on every rank (picklable)."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self._collective("gather"):
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            with self._collective("barrier"):
                dist.barrier()

    @contextmanager
    def unhurried(self, name: str) -> Iterator[None]:
        """Work that may keep one rank busy for longer than the time-out of collectives, such as a download.

        Leaving it waits until every rank has left it, without a collective and without an end: a rank that dies is
        its launcher's to notice. Signals are heeded meanwhile. `name` is used once in a run.
        """
        try:
            yield
        finally:
            if self.world_size > 1:
                with self._collective(name):
                    self._wait_for_all(_of_this_start(f"unhurried/{name}"))

    def _wait_for_all(self, counter: str) -> None:
        # the group's own store: nothing else is known to be reachable from every rank, and torch has no public name
        store = dist.distributed_c10d._get_default_store()
        arrived = store.add(counter, 1)
        while arrived < self.world_size:
            time.sleep(LOOK_SECONDS)
            arrived = store.add(counter, 0)


def start(timeout: timedelta = _TIMEOUT, check_seconds: float = CHECK_SECONDS) -> Ranks:
    """Join the process group that the environment describes, whatever launcher left it, and choose a device.

    Raises LaunchError for a contradictory environment, too few devices or a rank 0 that is not found; BadRanksError
    for ranks that do not come, stand still or change numbers (group_check.py). Slow ranks are named on stderr.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        facts = read_cluster(os.environ)
        os.environ.update(facts.as_environment())  # DeepSpeed and others look there
        record_flights()
        _choose_device(facts)
        if not dist.is_initialized():
            _join(facts, timeout)
        ranks = Ranks(facts, timeout)
        check = check_group(ranks.rank, ranks.world_size, ranks.device, check_seconds)
    except ClusterError as error:
        raise LaunchError(str(error)) from error
    except (AbsentError, WrongSumError) as error:
        raise BadRanksError(str(error)) from error
    if ranks.rank == 0 and (warning := check.warning()):
        sys.stderr.write(f"{warning}\n")
    return ranks


def _choose_device(facts: ClusterFacts) -> None:
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        _share_cores(facts)
        keep_freed_memory()
        return
    shown = accelerator.device_count()
    if facts.local_rank >= shown:
        advice = "one task sees one device: drop --gpus-per-task and --gpu-bind. " if shown == 1 else ""
        raise LaunchError(
            f"rank {facts.rank} wants device {facts.local_rank}, but shown here are {shown}. {advice}"
            "Start one rank per device, and let every rank of a node see all of its devices."
        )
    accelerator.set_device(facts.local_rank)


def _join(facts: ClusterFacts, timeout: timedelta) -> None:
    # Without this DeepSpeed compiles a shared-memory collective on first use on a CPU: it needs a compiler, and
    # a killed build leaves a lock on which every later start hangs.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    backend = "gloo" if accelerator.device_name() == "cpu" else accelerator.communication_backend_name()
    given = facts.job == "given"  # a launcher that gives address and port also sees to the meeting
    if not given:
        _meet_and_initialise(facts, backend, timeout)
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False, distributed_port=0
    )
    if given and facts.world_size > 1:  # its meeting may end before every rank has joined; what follows has a time-out
        store = dist.distributed_c10d._get_default_store()
        _require_all(facts, store, _of_this_start("arrived"), _join_time(timeout))


def _meet_and_initialise(facts: ClusterFacts, backend: str, timeout: timedelta) -> None:
    if facts.world_size > 1 and not (facts.job and facts.master_addr):
        facts = agree_over_mpi(facts)
    join = _join_time(timeout)
    store = meet(facts, timeout, join)
    _require_all(facts, store, "joined", join)
    os.environ.update(facts.as_environment() | {"MASTER_PORT": str(store.port)})
    device = None
    # torch 2.6.1 to 2.7.0 hang when they are told the device
    if backend == "nccl" and facts.world_size > 1 and not "2.6.0" < torch.__version__ < "2.7.1":
        device = torch.device("cuda", facts.local_rank)
    dist.init_process_group(
        backend, store=store, rank=facts.rank, world_size=facts.world_size, timeout=timeout, device_id=device
    )


def _require_all(facts: ClusterFacts, store: Any, subject: str, join: timedelta) -> None:
    hosts = hosts_of_ranks(os.environ, facts.world_size)

    def tell(missing: list[int], waited: float) -> None:
        limit = f"{JOIN_VARIABLE} is {join.total_seconds():.0f} s"
        sys.stderr.write(f"waiting for {describe(missing, hosts)}: not here after {waited:.0f} s ({limit})\n")
        sys.stderr.flush()

    speaker = tell if facts.rank == 0 else None
    absent = call_roll(store, subject, facts.rank, facts.world_size, join.total_seconds(), speaker)
    if absent:
        raise AbsentError(
            f"{len(absent)} of {facts.world_size} ranks did not come within {join.total_seconds():.0f} s: "
            f"{describe(absent, hosts)}. {exclude(absent, hosts)} {JOIN_VARIABLE} is how long the others wait."
        )


def _of_this_start(key: str) -> str:
    """A key of the store that an earlier start of the same ranks did not use: torchrun restarts them with its store."""
    return f"{key}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _join_time(timeout: timedelta) -> timedelta:
    """How long ranks may take from one another's first sign of life: Python starts slowly from a busy file system."""
    given = os.environ.get(JOIN_VARIABLE, "")
    try:
        seconds = float(given) if given else JOIN_SECONDS
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        rule = "it must be a number of seconds above 0. Set it right or unset it"
        raise ClusterError(f"{JOIN_VARIABLE} is {given!r}; {rule}.")
    return min(timeout, timedelta(seconds=seconds))


def _share_cores(facts: ClusterFacts) -> None:
    """Divide this node's cores among its ranks, unless the user or the launcher has: ranks that each take every core
    are many times slower than one."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // facts.local_size))


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
