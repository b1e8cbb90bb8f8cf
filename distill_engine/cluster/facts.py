"""Who am I among the ranks? Read from what launchers leave in the environment. Pure; standard library only.

    launcher   its marks                                       address and port of the meeting point
    torchrun   RANK ... and TORCHELASTIC_RUN_ID                given
    deepspeed  RANK ... and CROSS_RANK                         given
    environment RANK ... alone                                 given
    mpirun     OMPI_COMM_WORLD_RANK ... (Open MPI)             this machine, or agreed over MPI
    mpiexec    PMI_RANK, PMI_SIZE (MPICH, Intel MPI)           agreed over MPI
    srun       SLURM_PROCID of a step                          first node of the step, port derived from the job
    python     none                                            this machine

Launchers are often nested (`srun torchrun`, `mpirun` in a Slurm job): the innermost one, highest in the table, started
this process. MASTER_ADDR and MASTER_PORT, where a user sets them, always win.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from distill_engine.cluster.hostlist import expand_hostlist, expand_tasks_per_node

Launcher = Literal["torchrun", "deepspeed", "environment", "mpirun", "mpiexec", "srun", "python"]
LOOPBACK = "127.0.0.1"

# Above the registered services people run, below Linux's ephemeral range, which any outgoing connection may occupy.
FIRST_PORT, PORTS = 15_000, 15_000
_CANDIDATES = 16
# Steps that are no `srun`: external, batch script, interactive shell (Slurm gives numbers or names).
_NO_TASK_STEPS = {"4294967290", "4294967291", "4294967292", "batch", "extern", "interactive"}


class ClusterError(RuntimeError):
    """The environment does not describe a usable group of ranks; the text says which variables disagree."""


@dataclass(frozen=True)
class ClusterFacts:
    """This process among the others.

    node         0-based number of this node, as far as the launcher tells (else rank // local_size)
    nodes        how many nodes
    master_addr  host of rank 0; empty: the ranks still have to agree on it (over MPI)
    master_port  its port; 0: none is given, rank 0 takes a free one of `ports`
    job          the same on all ranks of one start and different for any other start; empty: still to be agreed
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    node: int
    nodes: int
    master_addr: str
    master_port: int
    launcher: Launcher
    job: str = ""

    @property
    def ports(self) -> tuple[int, ...]:
        """Where rank 0 may listen, in the order in which all ranks try."""
        return (self.master_port,) if self.master_port else port_candidates(self.job)

    def as_environment(self) -> dict[str, str]:
        """The variables that libraries look for; address and port only where they are known."""
        found = {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
        }
        if self.master_addr:
            found["MASTER_ADDR"] = self.master_addr
        if self.master_port:
            found["MASTER_PORT"] = str(self.master_port)
        return found


def port_candidates(job: str) -> tuple[int, ...]:
    """Distinct ports that follow from a job's identity, so that its ranks look in the same places."""
    digest = hashlib.sha256(job.encode()).digest()
    pairs = (int.from_bytes(digest[index : index + 2], "big") for index in range(0, len(digest), 2))
    return tuple(dict.fromkeys(FIRST_PORT + pair % PORTS for pair in pairs))[:_CANDIDATES]


def read_cluster(environment: Mapping[str, str]) -> ClusterFacts:
    """The facts, from the innermost launcher's variables. Raises ClusterError where they contradict each other."""
    if "RANK" in environment or "WORLD_SIZE" in environment:
        facts = _from_environment_protocol(environment)
    elif "OMPI_COMM_WORLD_RANK" in environment:
        facts = _from_open_mpi(environment)
    elif step := _slurm_step(environment):
        facts = step
        if "PMI_RANK" in environment and (_pmi(environment) != (step.rank, step.world_size)):
            facts = _from_pmi(environment)  # one `srun` task per node that starts the ranks of mpiexec
    elif "PMI_RANK" in environment:
        facts = _from_pmi(environment)
    else:
        facts = ClusterFacts(0, 1, 0, 1, 0, 1, LOOPBACK, 0, "python")
    return _checked(facts)


def hosts_of_ranks(environment: Mapping[str, str], world_size: int) -> tuple[str, ...]:
    """The node that each rank of this step of srun runs on, also of ranks that never come; () where nobody tells."""
    order = environment.get("SLURM_DISTRIBUTION", "block").split(":")[0].split(",")[0]
    try:
        hosts, per_node = _slurm_layout(environment)
        plane = _first_number(environment, ("SLURM_DIST_PLANESIZE",), 0) if order == "plane" else 0
    except ClusterError:
        return ()
    # how many ranks in a row a node is dealt; srun says cyclic by itself where there is a node for each rank
    in_a_row = {"block": world_size, "cyclic": 1, "plane": plane}.get(order, 0)
    if not in_a_row or len(hosts) != len(per_node) or sum(per_node) != world_size:
        return ()
    dealt: list[str] = []
    for done in range(0, max(per_node), in_a_row):
        for host, count in zip(hosts, per_node, strict=True):
            dealt += [host] * min(in_a_row, max(0, count - done))
    return tuple(dealt)


def _from_environment_protocol(environment: Mapping[str, str]) -> ClusterFacts:
    required = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in required if name in environment]
    missing = [name for name in required if name not in environment]
    if missing:
        raise ClusterError(
            f"The environment has {', '.join(present)} but not {', '.join(missing)}. A launcher sets all five. Start "
            "with srun, deepspeed, torchrun or mpirun, set all five, or unset them to run alone."
        )
    rank, world = _number(environment, "RANK"), _number(environment, "WORLD_SIZE", 1)
    local_rank = _number(environment, "LOCAL_RANK")
    launcher: Launcher = "environment"
    if "TORCHELASTIC_RUN_ID" in environment:
        launcher = "torchrun"
    elif "CROSS_RANK" in environment and "CROSS_SIZE" in environment:
        launcher = "deepspeed"
    else:
        _refuse_stale(environment, rank, world)
    local_size = _first_number(environment, ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"), 1 if world == 1 else local_rank + 1)
    node = _first_number(environment, ("GROUP_RANK", "CROSS_RANK"), rank // max(1, local_size))
    nodes = _first_number(environment, ("GROUP_WORLD_SIZE", "CROSS_SIZE"), _ceil(world, local_size))
    port = _number(environment, "MASTER_PORT", 1)
    return ClusterFacts(
        rank, world, local_rank, local_size, node, nodes, environment["MASTER_ADDR"], port, launcher, "given"
    )


def _refuse_stale(environment: Mapping[str, str], rank: int, world: int) -> None:
    """RANK left over in a shell from which srun or mpirun was started would make every rank the same one."""
    others: list[tuple[str, int, str, int]] = []
    if "OMPI_COMM_WORLD_RANK" in environment:
        own = _number(environment, "OMPI_COMM_WORLD_RANK"), _number(environment, "OMPI_COMM_WORLD_SIZE", 1)
        others.append(("OMPI_COMM_WORLD_RANK", own[0], "OMPI_COMM_WORLD_SIZE", own[1]))
    elif "PMI_RANK" in environment:
        own = _pmi(environment)
        others.append(("PMI_RANK", own[0], "PMI_SIZE", own[1]))
    elif step := _slurm_step(environment):
        others.append(("SLURM_PROCID", step.rank, "SLURM_STEP_NUM_TASKS", step.world_size))
    for rank_name, other_rank, size_name, other_size in others:
        if other_size > 1 and (rank, world) != (other_rank, other_size):
            raise ClusterError(
                f"RANK is {rank} of WORLD_SIZE {world}, but {rank_name} is {other_rank} of {size_name} {other_size}: "
                "two launchers disagree about who this process is. RANK and WORLD_SIZE probably stayed in the shell "
                "from another start. Do this, then start again: unset RANK WORLD_SIZE LOCAL_RANK"
            )


def _from_open_mpi(environment: Mapping[str, str]) -> ClusterFacts:
    rank, world = _number(environment, "OMPI_COMM_WORLD_RANK"), _number(environment, "OMPI_COMM_WORLD_SIZE", 1)
    local_rank = _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK")
    local_size = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
    identity = environment.get("OMPI_MCA_orte_hnp_uri") or environment.get("PMIX_NAMESPACE", "")
    on_one_node = local_size == world and bool(identity)
    return ClusterFacts(
        rank, world, local_rank, local_size, rank // local_size, _ceil(world, local_size),
        environment.get("MASTER_ADDR", LOOPBACK if on_one_node else ""), _given_port(environment), "mpirun",
        f"mpirun-{identity}" if on_one_node else "",
    )  # fmt: skip


def _pmi(environment: Mapping[str, str]) -> tuple[int, int]:
    return _number(environment, "PMI_RANK"), _number(environment, "PMI_SIZE", 1)


def _from_pmi(environment: Mapping[str, str]) -> ClusterFacts:
    rank, world = _pmi(environment)
    names = ("MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK"), ("MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")
    local_rank, local_size = _first_number(environment, names[0], -1), _first_number(environment, names[1], -1)
    if local_rank < 0 or local_size < 1:
        if world > 1:
            raise ClusterError(
                f"PMI_RANK is {rank} of PMI_SIZE {world}, but neither {' nor '.join(names[0])} says which rank this is "
                "on its node. Use mpiexec of MPICH (Hydra), Intel MPI or MVAPICH, or start with srun or torchrun."
            )
        local_rank, local_size = 0, 1
    return ClusterFacts(
        rank, world, local_rank, local_size, rank // local_size, _ceil(world, local_size),
        environment.get("MASTER_ADDR", ""), _given_port(environment), "mpiexec",
    )  # fmt: skip


def _slurm_step(environment: Mapping[str, str]) -> ClusterFacts | None:
    """The facts of a task of `srun`; None in a batch script or an interactive shell, which are no tasks."""
    step = environment.get("SLURM_STEP_ID", "")
    if step in ("", *_NO_TASK_STEPS) or "SLURM_PROCID" not in environment:
        return None
    rank = _number(environment, "SLURM_PROCID")
    world = _first_number(environment, ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), 1)
    local_rank, node = _number(environment, "SLURM_LOCALID"), _first_number(environment, ("SLURM_NODEID",), 0)
    hosts, per_node = _slurm_layout(environment)
    if per_node and sum(per_node) != world:
        raise ClusterError(
            f"Slurm says {world} tasks in this step, but SLURM_STEP_TASKS_PER_NODE adds up to {sum(per_node)}. The "
            "variables are of different steps: start from a fresh shell, or unset SLURM_STEP_TASKS_PER_NODE."
        )
    if per_node and node >= len(per_node):
        raise ClusterError(f"SLURM_NODEID is {node}, but the step has {len(per_node)} nodes: nodes count from 0.")
    local_size = per_node[node] if per_node else _ceil(world, max(1, len(hosts)))
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    head = environment.get("MASTER_ADDR") or (LOOPBACK if world == local_size else hosts[0] if hosts else "")
    if not head:
        raise ClusterError("SLURM_STEP_NODELIST and SLURM_JOB_NODELIST are missing: set MASTER_ADDR to rank 0's host.")
    return ClusterFacts(
        rank, world, local_rank, local_size, node, len(per_node) or max(1, len(hosts)), head,
        _given_port(environment), "srun", f"slurm-{environment.get('SLURM_JOB_ID', '')}.{step}.{restart}",
    )  # fmt: skip


def _slurm_layout(environment: Mapping[str, str]) -> tuple[list[str], list[int]]:
    """Host names of the step and tasks on each; either may be empty where Slurm does not say."""
    nodelist = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    try:
        hosts = expand_hostlist(nodelist) if nodelist else []
        return hosts, expand_tasks_per_node(tasks) if tasks else []
    except ValueError as error:
        raise ClusterError(f"Slurm's description of the step cannot be read: {error}.") from error


def _checked(facts: ClusterFacts) -> ClusterFacts:
    for name, index, size_name, size in (
        ("The rank", facts.rank, "the number of ranks", facts.world_size),
        ("The rank on its node", facts.local_rank, "the number of ranks on the node", facts.local_size),
        ("The node's number", facts.node, "the number of nodes", facts.nodes),
    ):
        if not 0 <= index < size:
            raise ClusterError(
                f"{name} is {index} but {size_name} is {size} ({facts.launcher}): numbers count from 0. "
                "Variables of different starts are mixed; start from a fresh shell."
            )
    if facts.local_size > facts.world_size:
        raise ClusterError(
            f"{facts.local_size} ranks on this node but WORLD_SIZE is {facts.world_size} ({facts.launcher}): a node "
            "has no more ranks than the whole start. Start from a fresh shell."
        )
    return facts


def _number(environment: Mapping[str, str], name: str, least: int = 0) -> int:
    value = environment.get(name)
    if value is None:
        raise ClusterError(f"{name} is missing although its launcher's other variables are set. Start again.")
    if not value.strip().isdecimal() or int(value) < least:
        raise ClusterError(f"{name} is {value!r}; it must be a whole number from {least} up. Unset it or start again.")
    return int(value)


def _first_number(environment: Mapping[str, str], names: tuple[str, ...], otherwise: int) -> int:
    return next((_number(environment, name) for name in names if environment.get(name)), otherwise)


def _given_port(environment: Mapping[str, str]) -> int:
    return _number(environment, "MASTER_PORT", 1) if environment.get("MASTER_PORT") else 0


def _ceil(number: int, divisor: int) -> int:
    return -(-number // max(1, divisor))
