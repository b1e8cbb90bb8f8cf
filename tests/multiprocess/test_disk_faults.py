"""Two real ranks on disks that fill up, become read-only, close or disappear: training goes on, nothing is lost."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from distill_engine.telemetry.jsonl import read_history
from distill_engine.telemetry.wandb_log import read_rows

pytestmark = pytest.mark.multiprocess


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


FULL = [(fault, False) for fault in ("in_part@1#3", "in_part@0#4", "in_manifest#2", "before_rename#2")]
FULL_IN_THE_BACKGROUND = [("in_part@1#4", True), ("in_part@0#5", True)]


@pytest.mark.parametrize(("fault", "background"), FULL + FULL_IN_THE_BACKGROUND)
def test_disk_full_once_on_one_rank_keeps_the_previous_and_goes_on(server, undisturbed, tmp_path, fault, background):
    answer = server.play(tmp_path, fault=f"enospc:{fault}", background=background)
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


@pytest.fixture
def few_inodes(small_disk):
    subprocess.run(["mount", "-o", "remount,nr_inodes=100", str(small_disk)], check=True)
    return small_disk


def test_no_file_can_be_made_for_a_while(server, undisturbed, few_inodes):
    """A file system whose table of files is full fails like a full disk, and training goes on."""
    take = "i=0; while touch taken-$i 2>/dev/null; do i=$((i+1)); done; test $i -gt 0"
    answer = server.play(few_inodes, hurt={"4": take, "6": "rm taken-*"})
    assert answer["codes"] == [0, 0], answer
    assert answer["reports"][0]["saves"] == {"2": True, "4": False, "6": True}
    assert "No space left" in answer["reports"][0]["warnings"][0]
    assert [report["final"] for report in answer["reports"]] == undisturbed


def test_a_disk_that_becomes_read_only_for_a_while(server, undisturbed, small_disk, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoints").symlink_to(small_disk)  # the run's lock is elsewhere: open files keep a disk writable
    remount = {step: f"mount -o remount,{how} {small_disk}" for step, how in (("4", "ro"), ("6", "rw"))}
    answer = server.play(folder, hurt=remount)
    assert answer["codes"] == [0, 0], answer
    assert answer["reports"][0]["saves"] == {"2": True, "4": False, "6": True}
    assert "Read-only file system" in answer["reports"][0]["warnings"][0]
    assert [report["final"] for report in answer["reports"]] == undisturbed


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without rights")
def test_a_folder_that_may_no_longer_be_written(server, undisturbed):
    nobody = 65534
    folder = Path(tempfile.mkdtemp(prefix="faults-"))  # pytest's own folders are closed to other users
    try:
        os.chown(folder, nobody, nobody)
        answer = server.play(folder, user=nobody, hurt={"4": "chmod u-w checkpoints", "6": "chmod u+w checkpoints"})
        assert answer["codes"] == [0, 0], answer
        assert answer["reports"][0]["saves"] == {"2": True, "4": False, "6": True}
        assert "Permission denied" in answer["reports"][0]["warnings"][0]
        assert [report["final"] for report in answer["reports"]] == undisturbed
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("lost", ["checkpoints", "checkpoints/step-00000002"])
def test_a_folder_deleted_while_the_run_lives(server, undisturbed, tmp_path, lost):
    answer = server.play(tmp_path, hurt={"4": f"rm -r {lost}"})
    assert answer["codes"] == [0, 0] and answer["reports"][0]["warnings"] == [], answer
    assert [report["final"] for report in answer["reports"]] == undisturbed
    assert names(tmp_path) == ["latest", "step-00000004", "step-00000006"]


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


# Logs as a run does, a word a line on standard input.
LOGGING = """
import pathlib, sys
from distill_engine.telemetry.background_sink import BackgroundSink
from distill_engine.telemetry.jsonl import JsonlSink, read_history
from distill_engine.telemetry.sinks import SinkGroup
from distill_engine.telemetry.config import WandbSection
from distill_engine.telemetry.wandb_sink import WandbSink

folder = pathlib.Path(sys.argv[1])
file = folder / "metrics.jsonl"
say = lambda text: print(text, flush=True)
options = WandbSection(project="project", mode="offline")
dashboard = lambda: WandbSink(folder, "name", options, {}, say, history=lambda: read_history(file))
group = SinkGroup([JsonlSink(file), BackgroundSink(dashboard, say)], say)
for line in sys.stdin:
    first, last = map(int, line.split())
    for step in range(first, last):
        group.record("train", step, step / 2, {"train/total": 1.0 / step})
    print("logged", flush=True)
group.close("finished")
"""


def test_logs_on_a_disk_that_is_really_full_for_a_while(roomy_disk, tmp_path):
    """Neither the run's own log nor W&B's lacks a line afterwards; meanwhile the own one ends with a whole one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB") and name != "NETRC"}
    run = subprocess.Popen(
        [sys.executable, "-c", LOGGING, str(roomy_disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=clean | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    said = []

    def log(first, last):
        run.stdin.write(f"{first} {last}\n")
        run.stdin.flush()
        while (line := run.stdout.readline().strip()) != "logged":
            assert line, said
            said.append(line)

    log(1, 15)
    with (roomy_disk / "filling").open("wb", buffering=0) as file:
        for size in (4096, 1):  # to the last byte
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    log(15, 400)
    text = (roomy_disk / "metrics.jsonl").read_bytes()
    assert text.endswith(b"}\n") and len(text.splitlines()) < 399
    (roomy_disk / "filling").unlink()
    log(400, 420)
    run.stdin.close()
    said += run.stdout.read().splitlines()
    assert run.wait() == 0
    assert [record.step for record in read_history(roomy_disk / "metrics.jsonl")] == list(range(1, 420))
    logs = roomy_disk.glob("wandb/offline-run-*/run-*.wandb")
    assert {row.identity[0] for log in logs for row in read_rows(log)} == set(range(1, 420))
    assert said[0].startswith("JsonlSink failed: OSError: [Errno 28] No space left on device"), said
