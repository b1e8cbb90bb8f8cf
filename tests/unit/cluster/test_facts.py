"""Who am I: a table of what each launcher leaves, and of what is refused."""

import pytest

from distill_engine.cluster.facts import (
    FIRST_PORT,
    PORTS,
    ClusterError,
    ClusterFacts,
    hosts_of_ranks,
    port_candidates,
    read_cluster,
)

GIVEN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = GIVEN | {
    "TORCHELASTIC_RUN_ID": "none",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "4",
}
DEEPSPEED = GIVEN | {"CROSS_RANK": "1", "CROSS_SIZE": "4", "LOCAL_SIZE": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "42.0;tcp://10.0.0.9:5",
}
HYDRA = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
SRUN = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
    "SLURM_JOB_NODELIST": "gpu[05-09]",
}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "77",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "16",
    "SLURM_JOB_NODELIST": "gpu[1-2]",
}


@pytest.mark.parametrize(
    ("environment", "facts"),
    [
        pytest.param({}, ClusterFacts(0, 1, 0, 1, 0, 1, "127.0.0.1", 0, "python"), id="python"),
        pytest.param(
            {"MASTER_ADDR": "old", "MASTER_PORT": "1"},
            ClusterFacts(0, 1, 0, 1, 0, 1, "127.0.0.1", 0, "python"),
            id="python after another start in this shell",
        ),
        pytest.param(BATCH_SCRIPT, ClusterFacts(0, 1, 0, 1, 0, 1, "127.0.0.1", 0, "python"), id="in a batch script"),
        pytest.param(
            BATCH_SCRIPT | {"SLURM_STEP_ID": "4294967290"},
            ClusterFacts(0, 1, 0, 1, 0, 1, "127.0.0.1", 0, "python"),
            id="in an interactive step",
        ),
        pytest.param(GIVEN, ClusterFacts(3, 8, 1, 2, 1, 4, "10.0.0.1", 29500, "environment", "given"), id="by hand"),
        pytest.param(TORCHRUN, ClusterFacts(3, 8, 1, 2, 1, 4, "10.0.0.1", 29500, "torchrun", "given"), id="torchrun"),
        pytest.param(
            DEEPSPEED, ClusterFacts(3, 8, 1, 2, 1, 4, "10.0.0.1", 29500, "deepspeed", "given"), id="deepspeed"
        ),
        pytest.param(
            SRUN | TORCHRUN, ClusterFacts(3, 8, 1, 2, 1, 4, "10.0.0.1", 29500, "torchrun", "given"), id="srun torchrun"
        ),
        pytest.param(
            OPEN_MPI,
            ClusterFacts(1, 2, 1, 2, 0, 1, "127.0.0.1", 0, "mpirun", "mpirun-42.0;tcp://10.0.0.9:5"),
            id="mpirun on one node",
        ),
        pytest.param(
            SRUN | OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "3"},
            ClusterFacts(3, 8, 1, 2, 1, 4, "", 0, "mpirun"),
            id="mpirun on four nodes, its daemons started by srun",
        ),
        pytest.param(HYDRA, ClusterFacts(5, 8, 1, 4, 1, 2, "", 0, "mpiexec"), id="mpich"),
        pytest.param(
            SRUN | HYDRA, ClusterFacts(5, 8, 1, 4, 1, 2, "", 0, "mpiexec"), id="mpich, its proxies started by srun"
        ),
        pytest.param(SRUN, ClusterFacts(4, 5, 0, 1, 2, 3, "gpu07", 0, "srun", "slurm-77.0.0"), id="srun"),
        pytest.param(
            SRUN | {"PMI_RANK": "4", "PMI_SIZE": "5"},
            ClusterFacts(4, 5, 0, 1, 2, 3, "gpu07", 0, "srun", "slurm-77.0.0"),
            id="srun --mpi=pmi2",
        ),
        pytest.param(
            SRUN | {"SLURM_RESTART_COUNT": "2", "MASTER_ADDR": "ib0", "MASTER_PORT": "12345"},
            ClusterFacts(4, 5, 0, 1, 2, 3, "ib0", 12345, "srun", "slurm-77.0.2"),
            id="srun, requeued, address chosen by the user",
        ),
        pytest.param(
            SRUN
            | {"SLURM_STEP_TASKS_PER_NODE": "5", "SLURM_STEP_NODELIST": "gpu07", "SLURM_NODEID": "0"}
            | {"SLURM_LOCALID": "4"},
            ClusterFacts(4, 5, 4, 5, 0, 1, "127.0.0.1", 0, "srun", "slurm-77.0.0"),
            id="srun on one node needs no name service",
        ),
    ],
)
def test_each_launcher(environment, facts):
    assert read_cluster(environment) == facts


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        *[({k: v for k, v in GIVEN.items() if k != name}, rf"but not .*{name}") for name in GIVEN],
        (GIVEN | {"RANK": "one"}, "RANK is 'one'"),
        (GIVEN | {"RANK": "8"}, r"rank is 8 but the number of ranks is 8"),
        (GIVEN | {"RANK": "-1"}, "RANK is '-1'"),
        (GIVEN | {"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        (GIVEN | {"MASTER_PORT": "0"}, "MASTER_PORT is '0'"),
        (GIVEN | OPEN_MPI, r"RANK is 3 of WORLD_SIZE 8, but OMPI_COMM_WORLD_RANK is 1 .*unset RANK"),
        (GIVEN | HYDRA, "but PMI_RANK is 5"),
        (GIVEN | SRUN, "but SLURM_PROCID is 4 of SLURM_STEP_NUM_TASKS 5"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "2"}, r"rank is 2 but the number of ranks is 2 \(mpirun\)"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE is missing"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "MPI_LOCALRANKID"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "8"}, "5 tasks in this step, but SLURM_STEP_TASKS_PER_NODE adds up to 8"),
        (SRUN | {"SLURM_STEP_NODELIST": "gpu[7-"}, "not closed"),
        (SRUN | {"SLURM_NODEID": "3"}, "SLURM_NODEID is 3"),
        (SRUN | {"SLURM_LOCALID": "2"}, "rank on its node is 2"),
        (SRUN | {"MASTER_PORT": "ssh"}, "MASTER_PORT is 'ssh'"),
        ({k: v for k, v in SRUN.items() if "NODELIST" not in k}, "set MASTER_ADDR"),
    ],
)
def test_contradictions_are_refused(environment, said):
    with pytest.raises(ClusterError, match=said):
        read_cluster(environment)


def test_a_users_own_wrapper_may_repeat_what_slurm_says():
    own = {"RANK": "4", "WORLD_SIZE": "5", "LOCAL_RANK": "0", "MASTER_ADDR": "gpu07", "MASTER_PORT": "1234"}
    assert read_cluster(SRUN | own).launcher == "environment"


def test_ports_follow_from_the_job_and_avoid_those_of_outgoing_connections():
    one, other = port_candidates("slurm-1.0.0"), port_candidates("slurm-2.0.0")
    assert one == port_candidates("slurm-1.0.0") and one != other
    for ports in (one, other):
        assert len(set(ports)) == len(ports) >= 8
        assert all(FIRST_PORT <= port < FIRST_PORT + PORTS <= 32_768 for port in ports)


def test_what_libraries_look_for():
    found = read_cluster(SRUN).as_environment()
    assert found == {
        "RANK": "4",
        "WORLD_SIZE": "5",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "gpu07",
    }


def test_the_nodes_of_ranks_that_never_come_are_known_where_slurm_tells():
    step = {"SLURM_STEP_NODELIST": "gpu[07-09]", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}
    assert hosts_of_ranks(step, 5) == ("gpu07", "gpu07", "gpu08", "gpu08", "gpu09")
    assert hosts_of_ranks(step, 6) == hosts_of_ranks({}, 1) == (), "not of this step"
    cyclic = ("gpu07", "gpu08", "gpu09", "gpu07", "gpu08")
    assert hosts_of_ranks(step | {"SLURM_DISTRIBUTION": "cyclic"}, 5) == cyclic
    assert hosts_of_ranks(step | {"SLURM_DISTRIBUTION": "cyclic:block,NoPack"}, 5) == cyclic
    one_each = {
        "SLURM_STEP_NODELIST": "gpu[07-09]",
        "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
        "SLURM_DISTRIBUTION": "cyclic",
    }
    assert hosts_of_ranks(one_each, 3) == ("gpu07", "gpu08", "gpu09"), "srun's own choice for one rank a node"
    planes = {"SLURM_DISTRIBUTION": "plane", "SLURM_DIST_PLANESIZE": "2"}
    uneven = step | {"SLURM_STEP_TASKS_PER_NODE": "3,2,1"} | planes
    assert hosts_of_ranks(uneven, 6) == ("gpu07", "gpu07", "gpu08", "gpu08", "gpu09", "gpu07")
    for unknown in (
        {"SLURM_DISTRIBUTION": "arbitrary"},
        {"SLURM_DISTRIBUTION": "plane"},
        planes | {"SLURM_DIST_PLANESIZE": "x"},
    ):
        assert hosts_of_ranks(step | unknown, 5) == (), "an order that nobody tells"
    assert hosts_of_ranks(step | {"SLURM_STEP_NODELIST": "gpu[7-"}, 5) == ()
