"""Tests that share ranks or a Slurm run in one process, the others file by file; on real workers."""

import re
import subprocess
import sys

from places import LONG, place_of

TREE = {
    "cluster": ("test_slurm.py", "test_slurm_faults.py", "test_launchers.py", "test_plan_is_true.py"),
    "multiprocess": ("test_one.py", "test_two.py", "test_three.py"),
    "end_to_end": ("test_resume.py", "test_kill.py"),
}


def test_every_folder_of_the_tree_is_there(root):
    for folder, files in TREE.items():
        there = {file.name for file in (root / "tests" / folder).glob("test_*.py")}
        assert there >= set(files) or (folder == "multiprocess" and len(there) > 5)


def test_the_long_places_are_there(root):
    assert [place for place in LONG if not (root / place).exists()] == []


def test_workers_take_places_whole(root, tmp_path):
    tests = tmp_path / "tests"
    for folder, files in TREE.items():
        (tests / folder).mkdir(parents=True)
        for file in files:
            (tests / folder / file).write_text("def test_a(): ...\ndef test_b(): ...\ndef test_c(): ...\n")
    for shared in ("conftest.py", "places.py"):
        (tests / shared).write_text((root / "tests" / shared).read_text())
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["tests"]\n')
    command = [sys.executable, "-m", "pytest", "-v", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    workers: dict[str, set[str]] = {}
    first: dict[str, str] = {}  # of each worker: one that is slow to begin may come after the other's second
    for worker, test in re.findall(r"\[(gw\d)\].* PASSED (\S+)", done.stdout):
        workers.setdefault(place_of(test), set()).add(worker)
        first.setdefault(worker, place_of(test))
    assert len(workers) == 6 and all(len(who) == 1 for who in workers.values()), done.stdout
    assert first.keys() == {"gw0", "gw1"}
    assert set(first.values()) == {"tests/cluster", "tests/multiprocess"}, "what is long comes first"
