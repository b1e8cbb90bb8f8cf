"""Two real ranks, killed, starved of disk space and given damaged files: what is there afterwards still loads.

After every fault the same run is started again and must end in the state of a run that nothing happened to, equal in
every bit (weights, early stopping, all random streams of both ranks).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.multiprocess

WORKER = Path(__file__).with_name("checkpoint_worker.py")
ROOT = Path(__file__).parents[2]
STEPS = 6
KILLED = -signal.SIGKILL


class Server:
    """The worker process; `play` runs one scenario in it."""

    def __init__(self, answers: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(answers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def play(self, folder: Path, **scenario) -> dict:
        self.process.stdin.write(json.dumps({"folder": str(folder), "steps": STEPS, **scenario}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the worker died"
        return json.loads(line)

    def finals(self, folder: Path, **scenario) -> list[dict]:
        """Final state of every rank of a run that must end well."""
        answer = self.play(folder, **scenario)
        assert set(answer["codes"]) == {0}, answer
        return [report["final"] for report in answer["reports"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("answers"))
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=30)


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory) -> list[dict]:
    return server.finals(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def finished_at_4(server, tmp_path_factory) -> Path:
    """A run stopped after step 4, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("finished")
    server.finals(folder, steps=4)
    assert names(folder) == ["latest", "step-00000002", "step-00000004"]
    return folder


@pytest.fixture
def stopped(finished_at_4, tmp_path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(finished_at_4, folder)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def newest(folder: Path) -> Path:
    return folder / "checkpoints" / "step-00000004"


def test_resume_equals_an_undisturbed_run(server, undisturbed, stopped):
    answer = server.play(stopped)
    assert [report["resumed_from"] for report in answer["reports"]] == [4, 4]
    assert [report["final"] for report in answer["reports"]] == undisturbed
    assert undisturbed[0] != undisturbed[1]
    assert undisturbed != server.finals(stopped.with_name("other"), steps=5)


# Numbers (#) choose the second save, so that an earlier checkpoint must survive; ranks pass a point differently often.
KILLS = [
    "before_part@0#5",
    "before_part@1#4",
    "in_part@0#4",
    "in_part@0#5",
    "in_part@0#6",
    "in_part@1#3",
    "in_part@1#4",
    "after_parts@0#2",
    "after_parts@1#2",
    "in_manifest#2",
    "before_rename#2",
    "after_rename#2",
    "before_pointer#2",
    "in_prune#1",
    "in_part@1#1",
    "before_rename#1",
]


@pytest.mark.parametrize("fault", KILLS)
def test_killed_at_a_named_point(server, undisturbed, tmp_path, fault):
    killed = server.play(tmp_path, fault=fault, keep_last=1)
    assert sorted(killed["codes"]) == [KILLED, 3], "one rank killed, the other told of it"
    again = server.play(tmp_path, keep_last=1)
    assert again["codes"] == [0, 0], again
    point, _, count = fault.partition("#")
    complete = {"after_rename": 4, "before_pointer": 4, "in_prune": 4}
    expected = None if count == "1" and point != "in_prune" else complete.get(point, 2)
    for report, final in zip(again["reports"], undisturbed, strict=True):
        assert report["resumed_from"] == expected
        assert report["final"] == final
    assert names(tmp_path) == ["latest", "step-00000006"]


def test_both_ranks_killed_at_once(server, undisturbed, tmp_path):
    assert server.play(tmp_path, fault="before_part#5")["codes"] == [KILLED, KILLED]
    assert server.finals(tmp_path) == undisturbed


def test_killed_before_every_single_file_operation(server, tmp_path):
    """One rank, so that a scenario is quick enough to try all of them: two saves, the second replacing the first."""
    whole = {"world_size": 1, "steps": 2, "save_every": 1, "keep_last": 1}
    expected = server.finals(tmp_path / "whole", **whole)
    kills = 0
    while True:
        folder = tmp_path / str(kills)
        answer = server.play(folder, kill_at=kills + 1, **whole)
        if answer["codes"] == [0]:
            break
        assert answer["codes"] == [KILLED], answer
        assert server.finals(folder, **whole) == expected, f"killed before file operation {kills + 1}"
        assert names(folder)[-1] == "step-00000002"
        assert not [path for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
        kills += 1
    assert kills > 40


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(len(content)).randrange(len(content))] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "truncated shard of rank 1": (lambda f: truncate(f / "student/zero_rank_1_states.pt"), "it is truncated"),
    "flipped bit in rank 0": (lambda f: flip(f / "student/zero_rank_0_states.pt"), "differs from its digest"),
    "flipped bit in random state": (lambda f: flip(f / "random/rank_00001.pt"), "differs from its digest"),
    "missing file": (lambda f: (f / "stopping/state.json").unlink(), "stopping/state.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest_falls_back_and_says_so(server, undisturbed, stopped, damage):
    do, reason = DAMAGE[damage]
    do(newest(stopped))
    answer = server.play(stopped)
    assert [report["resumed_from"] for report in answer["reports"]] == [2, 2]
    (warning,) = answer["reports"][0]["warnings"]
    assert "step-00000004" in warning and reason in warning and "step-00000002" in warning
    assert answer["reports"][1]["warnings"] == []
    assert [report["final"] for report in answer["reports"]] == undisturbed
    assert names(stopped) == ["latest", "step-00000004.1", "step-00000006"]


def test_all_damaged_is_an_error_on_every_rank_and_nothing_is_deleted(server, stopped):
    for folder in (stopped / "checkpoints").glob("step-*"):
        flip(folder / "student/zero_rank_0_states.pt")
    before = names(stopped)
    answer = server.play(stopped)
    assert answer["codes"] == [3, 3]
    for report in answer["reports"]:
        assert "None of the checkpoints" in report["error"]
        assert "step-00000002: student/zero_rank_0_states.pt differs" in report["error"]
        assert "step-00000004: student/zero_rank_0_states.pt differs" in report["error"]
    assert names(stopped) == before


@pytest.mark.parametrize("content", [None, b"", b"step-99999999\n", b"\xff\xfe"])
def test_pointer_is_never_trusted(server, undisturbed, stopped, content):
    pointer = stopped / "checkpoints" / "latest"
    pointer.unlink()
    if content is not None:
        pointer.write_bytes(content)
    assert server.finals(stopped) == undisturbed
    assert pointer.read_text() == "step-00000006\n"


def test_other_identity_is_refused_with_the_differences(server, stopped):
    answer = server.play(stopped, identity={"recipe": "b", "student.decoder_layers": 9})
    assert answer["codes"] == [3, 3]
    for report in answer["reports"]:
        assert 'recipe: "a" -> "b"' in report["error"]
        assert "student.decoder_layers: (absent) -> 9" in report["error"]


def test_other_world_size_is_refused(server, stopped):
    answer = server.play(stopped, world_size=1)
    assert answer["codes"] == [3]
    assert "written by 2 ranks, this run has 1" in answer["reports"][0]["error"]


@pytest.mark.parametrize("fault", ["in_part@1#3", "in_part@0#4", "in_manifest#2", "before_rename#2"])
def test_disk_full_once_on_one_rank_keeps_the_previous_and_goes_on(server, undisturbed, tmp_path, fault):
    answer = server.play(tmp_path, fault=f"enospc:{fault}")
    assert answer["codes"] == [0, 0], answer
    for report, final in zip(answer["reports"], undisturbed, strict=True):
        assert report["saves"] == {"2": True, "4": False, "6": True}
        assert report["final"] == final
    (warning,) = answer["reports"][0]["warnings"]
    failing_rank = "rank 1" if "@1" in fault else "rank 0"
    assert f"{failing_rank}: " in warning and "No space left" in warning and "step 4" in warning
    assert names(tmp_path) == ["latest", "step-00000002", "step-00000006"]


def test_disk_full_at_the_pointer_only_warns(server, undisturbed, tmp_path):
    answer = server.play(tmp_path, fault="enospc:before_pointer#2")
    assert [report["final"] for report in answer["reports"]] == undisturbed
    assert answer["reports"][0]["saves"] == {"2": True, "4": True, "6": True}
    assert "step-00000004 is complete, but" in answer["reports"][0]["warnings"][0]


def test_disk_full_for_ever_ends_the_run_on_all_ranks(server, undisturbed, tmp_path):
    server.finals(tmp_path, steps=2)
    answer = server.play(tmp_path, steps=8, fault="enospc:in_part@1")
    assert answer["codes"] == [3, 3]
    for report in answer["reports"]:
        assert report["saves"] == {"4": False, "6": False}
        assert "failure 3 of 3 in a row" in report["error"] and "rank 1: part student" in report["error"]
    assert server.finals(tmp_path) == undisturbed, "the checkpoint of step 2 is still good"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(server, small_disk):
    """The first save meets the end of the disk while writing, another is refused beforehand; both recover."""
    size = 100_000  # 0.4 MB per rank
    options = {"size": size, "steps": 8, "keep_last": 1, "leave_bytes": 500_000}
    expected = server.finals(small_disk / "undisturbed", **{**options, "save_every": 99})
    answer = server.play(small_disk / "first", fill_disk_at=2, **options)
    assert answer["reports"][0]["saves"] == {"2": False, "4": True, "6": True, "8": True}, answer
    (warning,) = answer["reports"][0]["warnings"]
    assert "No space left" in warning
    assert [report["final"] for report in answer["reports"]] == expected
    shutil.rmtree(small_disk / "first")
    answer = server.play(small_disk / "second", fill_disk_at=6, **options)
    assert answer["reports"][0]["saves"] == {"2": True, "4": True, "6": False, "8": True}, answer
    (warning,) = answer["reports"][0]["warnings"]
    assert "the last checkpoint took 8" in warning and "are free" in warning
    assert [report["final"] for report in answer["reports"]] == expected


def test_preflight_of_a_full_disk_names_every_rank(server, small_disk):
    answer = server.play(small_disk, check_folder=True, needed_bytes=64 << 20)
    for report in answer["reports"]:
        assert "rank 0: 4.0 MiB are free, checkpoints need 64.0 MiB; rank 1: " in report["error"]
    assert list(small_disk.iterdir()) == []


def test_preflight_of_a_read_only_disk(server, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    answer = server.play(small_disk, check_folder=True)
    assert answer["codes"] == [3, 3]
    for report in answer["reports"]:
        assert report["error"].startswith("RunFolderError") and "Read-only file system" in report["error"]


def test_read_only_disk_at_a_restart_is_an_error_that_harms_nothing(server, undisturbed, small_disk):
    server.finals(small_disk / "run", steps=4)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    answer = server.play(small_disk / "run")
    assert all("Read-only file system" in report["error"] for report in answer["reports"])
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert server.finals(small_disk / "run") == undisturbed


def test_a_file_in_the_way_of_the_run_folder(server, tmp_path):
    (tmp_path / "run").write_text("not a folder")
    answer = server.play(tmp_path / "run", check_folder=True)
    for report in answer["reports"]:
        assert f"The run folder {tmp_path / 'run'} cannot be used: rank 0: FileExistsError" in report["error"]


def test_preflight_leaves_nothing_behind(server, tmp_path):
    server.finals(tmp_path, check_folder=True, steps=1, save_every=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoints"]
