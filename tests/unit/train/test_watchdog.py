"""A process that makes no progress ends and says where it stands; one that is merely slow does not."""

import json
import subprocess
import sys
import threading

import pytest

from distill_engine.train import behind
from distill_engine.train import watchdog as module
from distill_engine.train.hooks import Supervision
from distill_engine.train.policies import Every
from distill_engine.train.watchdog import Watchdog


class Ended:
    """Stands for the end of the process."""

    def __init__(self):
        self.event = threading.Event()

    def __call__(self):
        self.event.set()


@pytest.fixture
def ended(monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", (0.0, 0.0))
    return Ended()


def test_time_without_a_beat_is_counted(tmp_path):
    dog = Watchdog(10.0, tmp_path, 0, 1, Ended())
    assert [dog.tick(4.0) for _ in range(3)] == [False, False, True]
    dog.beat("at work")
    assert [dog.tick(4.0) for _ in range(4)] == [False, False, False, True]


def test_slow_progress_is_progress(tmp_path):
    dog = Watchdog(10.0, tmp_path, 0, 1, Ended())
    for _ in range(50):
        dog.beat("slow")
        assert not dog.tick(9.0) and not dog.tick(9.0)


def test_loading_may_take_as_long_as_the_file_system_does(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOADING_SECONDS", 25.0)
    dog = Watchdog(10.0, tmp_path, 0, 1, Ended())
    dog.loading = True
    assert [dog.tick(10.0) for _ in range(3)] == [False, False, True]
    dog.beat("at work")
    dog.loading = False
    assert [dog.tick(10.0) for _ in range(2)] == [False, True]


class Reached:
    """Stands for the ranks of the engine."""

    def reached(self, *, groups):
        own = {"number": 4, "ended": 4, "name": "sum"}
        if groups:
            raise OSError("the device hangs")
        return {"node": "n2", "tracks": {"own": own}}

    def flights(self):
        return b"the last collectives"


@pytest.mark.parametrize("says", [False, True])
def test_a_hang_leaves_how_far_the_rank_has_come_and_names_who_is_behind(tmp_path, ended, capfd, says, monkeypatch):
    """It ends after rank 0 has said who is behind, or when that has taken too long."""
    monkeypatch.setattr(module, "SAY_SECONDS", 60.0 if says else 0.1)
    if says:
        (tmp_path / "rank_0.txt").write_text("[watchdog] hung: rank 1 is behind\n")
    ahead = {"node": "n1", "doing": "agreeing", "tracks": {"own": {"number": 5, "ended": 4, "name": "sum"}}}
    behind.leave_position(tmp_path, 0, ahead)
    with Watchdog(0.2, tmp_path, 1, 3, ended, Reached()) as dog:
        dog.beat("in phase 'data' of optimizer step 7")
        assert ended.event.wait(30)
    assert json.loads((tmp_path / "rank_1.json").read_text())["tracks"]["own"]["number"] == 4
    last = (tmp_path / "rank_1.txt").read_text().splitlines()[-1]
    assert last.startswith("[watchdog] hung: rank 2 left no word") and "rank 1 (n2) is behind" in last
    assert "[watchdog] hung" not in capfd.readouterr().err, "rank 0 can say it"


def test_a_hang_writes_every_threads_stack_and_ends(tmp_path, ended, capfd):
    file = tmp_path / "hang" / "rank_3.txt"
    file.parent.mkdir()
    file.write_text("an earlier hang\n")

    def stuck_in_a_collective():
        ended.event.wait(30)

    other = threading.Thread(target=stuck_in_a_collective, daemon=True)
    other.start()
    with Watchdog(0.2, tmp_path / "hang", 3, 8, ended) as dog:
        dog.beat("in phase 'data' of optimizer step 7")
        assert ended.event.wait(30)
    for text in (file.read_text(), capfd.readouterr().err):
        assert "rank 3 of 8" in text and "while it was in phase 'data' of optimizer step 7" in text
        assert "stop.hang_seconds: 0.2" in text
        assert "in stuck_in_a_collective" in text and "in test_a_hang_writes_every_threads_stack" in text
    assert file.read_text().startswith("an earlier hang\n")


def test_a_run_that_ends_leaves_no_thread_and_no_file(tmp_path, ended):
    before = set(threading.enumerate())  # of other tests, too, which may end meanwhile
    with Watchdog(5.0, tmp_path / "hang", 0, 1, ended) as dog:
        (own,) = set(threading.enumerate()) - before
        dog.beat("done soon")
    assert not own.is_alive() and not (tmp_path / "hang").exists() and not ended.event.is_set()


def test_without_a_limit_nothing_is_started(tmp_path, ended):
    before = set(threading.enumerate())
    with Watchdog(None, tmp_path / "hang", 0, 1, ended) as dog:
        dog.beat("at work")
        assert set(threading.enumerate()) <= before
    assert not (tmp_path / "hang").exists()


def test_a_folder_that_takes_no_file_does_not_keep_the_process_alive(tmp_path, ended, capfd):
    (tmp_path / "hang").write_text("in the way")
    with Watchdog(0.1, tmp_path / "hang", 0, 1, ended):
        assert ended.event.wait(30)
    assert "made no progress" in capfd.readouterr().err


def test_a_suspended_process_has_not_hung(tmp_path, ended, monkeypatch):
    """A clock that leaps by an hour counts as one look."""
    leaps = iter([0.0, 3600.0])
    looks = threading.Event()

    def clock():
        now = next(leaps, 3600.0)
        if now:
            looks.set()
        return now

    monkeypatch.setattr(module.time, "monotonic", clock)
    with Watchdog(2.0, tmp_path, 0, 1, ended) as dog:
        assert looks.wait(10)
    assert dog._idle <= 2.0 * 2 / module.POLLS and not ended.event.is_set()


LOCKED = """
import ctypes, sys
from pathlib import Path
from distill_engine.train.watchdog import Watchdog

def keeps_the_lock():
    ctypes.PyDLL(None).sleep(60)

with Watchdog(0.3, Path(sys.argv[1]), 0, 1, lambda: None) as dog:
    dog.beat("in a library")
    keeps_the_lock()
"""


def test_a_library_that_keeps_pythons_lock_cannot_hide(tmp_path):
    done = subprocess.run([sys.executable, "-c", LOCKED, str(tmp_path)], capture_output=True, timeout=50)
    assert done.returncode == 1
    assert "in keeps_the_lock" in (tmp_path / "rank_0.txt").read_text()


def test_the_loop_beats_at_everything_it_begins(toy):
    run = toy(max_steps=2, validate=Every(steps=2))
    beats: list[str] = []
    run.hooks.each.append(Supervision(beats.append))
    run.trainer.run()
    phases = [f"in phase {name!r} of optimizer step 2" for name in ("data", "teacher", "student", "losses", "backward")]
    expected = [
        *phases, "in phase 'optimizer' of optimizer step 2", "agreeing with the other ranks after optimizer step 2",
        "validating after step 2", "exporting the best student of step 2", "saving the checkpoint of step 2",
        "writing part student of a checkpoint",
    ]  # fmt: skip
    positions = [beats.index(beat) for beat in expected]
    assert positions == sorted(positions)
    again = toy(max_steps=2, validate=Every(steps=2))
    again.hooks.each.append(Supervision(beats.append))
    again.trainer.run()
    assert "reading part student of a checkpoint" in beats
