"""Three real ranks meet; one never comes, stands still, dies, is slow or adds a wrong number.

It is named with its node, in bounded time, and everybody else ends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill_engine.engine.group_check import slow_ranks

ROOT = Path(__file__).parents[2]
CHECK_SECONDS, JOIN_SECONDS = 15, 12
SILENT = {
    "stands still": "rank 1 (gpu02) did not answer",
    "dies": "rank 1 (gpu02) did not answer",
    "never comes": f"1 of 3 ranks did not come within {JOIN_SECONDS} s: rank 1 (gpu02). Exclude gpu02",
    "rank 0 stands still": "rank 0 (gpu01) did not answer",
}


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> SimpleNamespace:
    """One group for each fault: exit code of each rank that ended by itself, and what each said."""
    folder = tmp_path_factory.mktemp("groups")
    strangers = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "OMPI_", "PMI_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(strangers)}
    command = [sys.executable, Path(__file__).with_name("group_check_worker.py"), folder, CHECK_SECONDS, JOIN_SECONDS]
    faults = ["none", "slow", "wrong", *SILENT]
    done = subprocess.run(
        [str(word) for word in (*command, *faults)],
        env=clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    said = {file.name: file.read_text() for file in folder.iterdir()}
    return SimpleNamespace(codes=found["codes"], said=said)


def test_good_ranks_start_without_a_word(groups):
    for rank in range(3):
        assert groups.codes[f"none-{rank}"] == 0 and groups.said[f"none-{rank}"] == "together [3.0]\n"


def test_a_slow_rank_is_named_by_rank_0_and_the_run_goes_on(groups):
    assert [groups.codes[f"slow-{rank}"] for rank in range(3)] == [0, 0, 0]
    said = groups.said["slow-0"]
    assert "slow: rank 1 (gpu02) took" in said and "Exclude gpu02 (sbatch --exclude=gpu02)" in said, said
    assert "rank 2 (" not in said and groups.said["slow-1"] == groups.said["slow-2"] == "together [3.0]\n"


def test_a_rank_whose_numbers_are_wrong_is_named_on_all(groups):
    for rank in range(3):
        assert groups.codes[f"wrong-{rank}"] == 3
        assert "sum over 3 ranks is wrong where rank 1 (gpu02) added" in groups.said[f"wrong-{rank}"]


@pytest.mark.parametrize("fault", SILENT)
def test_a_silent_rank_is_named_with_its_node_and_the_others_end(groups, fault):
    silent = 0 if fault.startswith("rank 0") else 1
    for rank in {0, 1, 2} - {silent}:
        assert groups.codes.get(f"{fault}-{rank}") == 3, groups.said[f"{fault}-{rank}"]
        said = groups.said[f"{fault}-{rank}"]
        assert SILENT[fault] in said and "sbatch --exclude=" in said, said


def test_while_a_rank_is_waited_for_rank_0_says_which_on_which_node(groups):
    said = groups.said["never comes-0"]
    assert "waiting for rank 1 (gpu02): not here after" in said and f"{JOIN_SECONDS} s" in said, said
    assert "waiting" not in groups.said["never comes-2"], "one line, not one from every rank"


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [
        ([0.01, 0.01, 0.01], ()),
        ([0.01, 0.2, 0.01], ()),  # many times the others, but too short to matter
        ([0.01, 0.3, 0.01], (1,)),
        ([1.0, 1.5, 3.9, 1.0], ()),
        ([0.1, 9.0, 0.1, 8.0, 0.1], (1, 3)),
    ],
)
def test_slow_is_far_beyond_the_median(seconds, slow):
    assert slow_ranks(seconds) == slow
