"""Where the ranks meet when their launcher gave no port (srun, mpirun, plain python).

Rank 0 opens the store on any free port, and listens on the first free one of a short list that follows from the job.
The others go through the same list and say the job's name; only rank 0 of that job answers, with the store's port. So
a port that another process holds is passed over, and the ranks of two jobs on one node can never pair up, even where
both lists name the same port. (A store's own client waits for ever on a port whose owner is silent.)
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta

from torch.distributed import TCPStore

from distill_engine.cluster.facts import LOOPBACK, ClusterError, ClusterFacts
from distill_engine.engine.roll_call import Patience

_SECONDS = 3.0  # for a stranger's port to answer
_PAUSE_SECONDS = 0.2
_LONGEST_LINE = 4096


def meet(facts: ClusterFacts, timeout: timedelta, join: timedelta | None = None) -> TCPStore:
    """The store of this job. Rank 0's process holds it; it must be kept for as long as the group lives.

    timeout  of the store's own calls afterwards
    join     how long the ranks may take to find each other (default: the same)
    Raises ClusterError when no port is free, or when the ranks do not find each other in time.
    """
    if facts.rank == 0:
        return _open(facts, timeout)
    return _find(facts, timeout, timeout if join is None else join)


def agree_over_mpi(facts: ClusterFacts) -> ClusterFacts:
    """Facts with rank 0's address and a fresh job name, told to all ranks by MPI.

    MPI is left again at once: its end waits for all ranks, so a rank that fails would hang there.
    Raises ClusterError when mpi4py is not there.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ClusterError(
            f"{facts.launcher} does not say where rank 0 is, and mpi4py, which could ask, cannot be used ({error}). "
            "Install mpi4py for this MPI, or pass MASTER_ADDR and MASTER_PORT to all ranks."
        ) from error
    MPI.Init()
    world = MPI.COMM_WORLD
    if (world.rank, world.size) != (facts.rank, facts.world_size):
        raise ClusterError(
            f"{facts.launcher} says rank {facts.rank} of {facts.world_size}, MPI says {world.rank} of {world.size}: "
            "mpi4py was built for another MPI than the one that started this. Reinstall mpi4py with this MPI loaded, "
            "or start with srun or torchrun."
        )
    host, token = world.bcast((socket.gethostname(), secrets.token_hex(8)), root=0)
    MPI.Finalize()
    return replace(facts, master_addr=facts.master_addr or host, job=f"{facts.launcher}-{token}")


def _open(facts: ClusterFacts, timeout: timedelta) -> TCPStore:
    # the store takes a port that the kernel says is free and keeps it: no other process can come between
    store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    if facts.world_size > 1:
        server = _listen(facts)
        answer = threading.Thread(target=_answer, args=(server, facts, store.port), name="meeting-point", daemon=True)
        answer.start()
    return store


def _listen(facts: ClusterFacts) -> socket.socket:
    for port in facts.ports:
        try:
            return socket.create_server(("", port), backlog=facts.world_size)
        except OSError:  # taken
            continue
    named = ", ".join(map(str, facts.ports))
    raise ClusterError(
        f"Rank 0 found no free port to meet the others on {socket.gethostname()}; it tried {named}. Other programs "
        "hold them (`ss -ltnp` names them). End those, or set MASTER_PORT to a free one."
    )


def _answer(server: socket.socket, facts: ClusterFacts, store_port: int) -> None:
    """Tell every rank of this job, and nobody else, where the store is."""
    waiting = facts.world_size - 1
    with server:
        while waiting:
            visitor, _ = server.accept()
            with visitor, contextlib.suppress(OSError):
                visitor.settimeout(_SECONDS)
                if _line(visitor) == facts.job:
                    visitor.sendall(f"{store_port}\n".encode())
                    waiting -= 1


def _find(facts: ClusterFacts, timeout: timedelta, join: timedelta) -> TCPStore:
    deadline, patience = time.monotonic() + join.total_seconds(), Patience()
    problem = ""
    while True:
        for port in facts.ports:
            answer = _ask(facts, port)
            if isinstance(answer, int):
                return TCPStore(facts.master_addr, answer, is_master=False, wait_for_workers=False, timeout=timeout)
            problem = answer
        if time.monotonic() >= deadline:
            raise ClusterError(
                f"Rank {facts.rank} did not find rank 0 at {facts.master_addr} within {join.total_seconds():.0f} s. "
                f"Tried: ports {', '.join(map(str, facts.ports))}; the last answer: {problem}. Rank 0 may have failed, "
                "or its address is of a network that this node does not reach: set MASTER_ADDR to one that it does."
            )
        if facts.local_rank == 0 and (waited := patience.waited()):  # one line from each node
            limit = f"it is waited for up to {join.total_seconds():.0f} s"
            sys.stderr.write(
                f"waiting for rank 0 at {facts.master_addr}: not found after {waited:.0f} s ({problem}); {limit}\n"
            )
            sys.stderr.flush()
        time.sleep(_PAUSE_SECONDS)


def _ask(facts: ClusterFacts, port: int) -> int | str:
    """The store's port if this job's rank 0 listens on `port`, else what was found there."""
    try:
        with socket.create_connection((facts.master_addr, port), timeout=_SECONDS) as line:
            line.settimeout(_SECONDS)
            line.sendall(f"{facts.job}\n".encode())
            answer = _line(line)
    except OSError as error:
        return f"port {port}: {error.strerror or error}"
    return int(answer) if answer.isdecimal() else f"port {port} belongs to another program"


def _line(connection: socket.socket) -> str:
    """One short line; empty when the other side closes. OSError when it stays silent."""
    received = b""
    while not received.endswith(b"\n") and len(received) < _LONGEST_LINE:
        part = connection.recv(_LONGEST_LINE)
        if not part:
            return ""
        received += part
    return received.decode(errors="replace").strip()
