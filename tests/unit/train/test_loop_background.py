"""Checkpoints written while training goes on: what they hold, when they count, and what happens when writing fails."""

import errno
import math
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from distill_engine.checkpoint.background import THREAD_NAME, Writing
from distill_engine.checkpoint.checkpoints import CheckpointError, Checkpoints
from distill_engine.checkpoint.parts import JsonPart, RngPart
from distill_engine.checkpoint.retention import Retention
from distill_engine.train.policies import Every, KeepBest


class OneRank:
    rank, world_size = 0, 1

    def gather(self, value):
        return [value]


class Slow:
    """A part whose writing waits to be let go, and may fail then."""

    def __init__(self) -> None:
        self.text = ""
        self.go = threading.Event()
        self.fails: Exception | None = None

    def snapshot(self, folder: Path):
        text = self.text

        def write() -> None:
            assert self.go.wait(30)
            if self.fails:
                raise self.fails
            (folder / "text.txt").write_text(text)

        return write

    def save(self, folder: Path) -> None:
        self.snapshot(folder)()

    def load(self, folder: Path) -> None:
        self.text = (folder / "text.txt").read_text()


@pytest.fixture
def part() -> Slow:
    return Slow()


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def checkpoints(tmp_path, warnings) -> Checkpoints:
    return Checkpoints(tmp_path, OneRank(), identity={}, keep=Retention(2), warn=warnings.append)


def test_it_holds_what_was_when_it_began_and_counts_when_it_is_finished(checkpoints, part):
    part.text = "then"
    assert checkpoints.begin(3, {"slow": part})
    part.text = "now"
    assert checkpoints.finish(wait=False) is None and checkpoints.latest_complete() is None
    part.go.set()
    assert checkpoints.finish(wait=True) is True
    assert checkpoints.finish(wait=True) is None, "nothing is on its way any more"
    assert checkpoints.resume({"slow": part}) == 3 and part.text == "then"


def test_without_waiting_it_is_finished_at_a_later_look(checkpoints, part):
    checkpoints.begin(3, {"slow": part})
    assert checkpoints.finish(wait=False) is None
    part.go.set()
    outcomes = []
    while not outcomes or outcomes[-1] is None:
        outcomes.append(checkpoints.finish(wait=False))
    assert outcomes[-1] is True and checkpoints.latest_complete().step == 3


def test_a_save_waits_for_the_one_before(checkpoints, part):
    part.text = "first"
    checkpoints.begin(3, {"slow": part})
    part.text = "second"
    part.go.set()
    assert checkpoints.save(4, {"slow": part})
    assert sorted(path.name for path in checkpoints.folder.glob("step-*")) == ["step-00000003", "step-00000004"]


def test_failures_are_told_with_the_part_and_counted(checkpoints, part, warnings):
    part.go.set()
    assert checkpoints.save(1, {"slow": part})
    part.fails = OSError(errno.ENOSPC, "No space left on device")
    for step in (2, 3):
        assert checkpoints.begin(step, {"slow": part})
        assert checkpoints.finish(wait=True) is False
    assert "part slow: No space left" in warnings[0] and "failure 2 of 3" in warnings[1]
    checkpoints.begin(4, {"slow": part})
    with pytest.raises(CheckpointError, match="failure 3 of 3"):
        checkpoints.finish(wait=True)
    assert [path.name for path in checkpoints.folder.iterdir() if path.is_dir()] == ["step-00000001"]


def test_the_value_it_was_validated_with_decides_whether_it_stays(tmp_path, part):
    checkpoints = Checkpoints(tmp_path, OneRank(), identity={}, keep=Retention(1, best=1))
    part.go.set()
    for step, value in ((1, 5.0), (2, 3.0), (3, 4.0), (4, math.nan), (5, None)):
        assert checkpoints.begin(step, {"slow": part}, value) and checkpoints.finish(wait=True)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000005"]


def test_old_ones_are_deleted_while_training_goes_on_and_before_the_next_save(checkpoints, part, monkeypatch):
    tidy, go = checkpoints._disk.tidy, threading.Event()
    monkeypatch.setattr(checkpoints._disk, "tidy", lambda name: go.wait(30) and tidy(name))
    part.go.set()
    for step in (1, 2, 3):
        if step == 3:
            go.clear()
        else:
            go.set()
        assert checkpoints.begin(step, {"slow": part})
        while checkpoints.finish(wait=False) is None:
            continue
    found = [f"step-{step:08d}" for step in (1, 2, 3)]
    assert sorted(path.name for path in checkpoints.folder.glob("step-*")) == found, "nothing waits for the deletion"
    go.set()
    assert checkpoints.begin(4, {"slow": part})
    assert sorted(path.name for path in checkpoints.folder.glob("step-*")) == found[1:], "its space is needed now"
    assert checkpoints.finish(wait=True)
    assert sorted(path.name for path in checkpoints.folder.glob("step-*")) == ["step-00000003", "step-00000004"]


def test_a_checkpoint_is_not_complete_before_what_it_takes_for_granted(tmp_path, part):
    exported = threading.Event()
    checkpoints = Checkpoints(
        tmp_path, OneRank(), identity={}, keep=Retention(2), first=lambda: exported.wait(30) or None
    )
    part.go.set()
    assert checkpoints.begin(1, {"slow": part})
    assert checkpoints.finish(wait=False) is None and checkpoints.latest_complete() is None
    exported.set()
    assert checkpoints.finish(wait=True) is True and checkpoints.latest_complete().step == 1


def test_small_states_are_copied(checkpoints, part):
    kept = KeepBest("min")
    kept.observe(4.0)
    parts = {"slow": part, "kept": JsonPart(kept, 0), "random": RngPart(0)}
    random.seed(1)
    expected = random.getstate()
    assert checkpoints.begin(1, parts)
    kept.observe(2.0)
    random.seed(2)
    part.go.set()
    assert checkpoints.finish(wait=True)
    checkpoints.resume(parts)
    assert kept.best == 4.0 and random.getstate() == expected


def test_what_is_abandoned_ends_and_leaves_nothing_that_counts(checkpoints, part):
    later = Slow()
    checkpoints.begin(1, {"slow": part, "later": later})
    threading.Timer(0.2, part.go.set).start()
    checkpoints.abandon()
    assert not any(thread.name == THREAD_NAME for thread in threading.enumerate())
    assert [path.name for path in checkpoints.folder.rglob("text.txt")] == ["text.txt"], "the second was not begun"
    assert checkpoints.finish(wait=True) is None
    assert checkpoints.resume({"slow": part}) is None and list(checkpoints.folder.iterdir()) == []


def test_a_disk_that_hangs_does_not_keep_what_is_abandoned(tmp_path):
    begun, go = threading.Event(), threading.Event()

    def write(_go_on) -> dict:
        begun.set()
        go.wait(30)
        return {}

    writing = Writing(1, tmp_path, (), None, write)
    begun.wait(30)
    writing.abandon(seconds=0.1)
    assert not writing.done
    go.set()
    assert writing.result() == {}


FAILING = """
import sys, time, torch
from pathlib import Path
from distill_engine.checkpoint.background import Writing

weights = torch.zeros(30_000_000)
begun = Path(sys.argv[1]) / "0.pt"

def write(go_on):
    for number in range(1000):
        go_on()
        torch.save(weights, begun.with_name(f"{number % 2}.pt"))
    return {}

writing = Writing(1, begun.parent, (), None, write)
while not begun.exists():
    time.sleep(0.001)
try:
    raise SystemExit(78)
finally:
    writing.abandon()
"""


def test_a_process_that_fails_while_it_is_written_has_its_own_exit_code(tmp_path):
    done = subprocess.run([sys.executable, "-c", FAILING, tmp_path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (78, "")


def test_an_error_in_the_loop_leaves_nothing_behind_that_counts(toy, monkeypatch):
    run = toy(max_steps=6, save=Every(steps=2))
    run.policies.background_saves = True
    finish, step = run.checkpoints.finish, run.student.step
    monkeypatch.setattr(run.checkpoints, "finish", lambda wait: finish(wait=True) if wait else None)  # as a slow disk

    def failing(rate):
        if run.trainer.progress.steps == 4:
            raise RuntimeError("broken")
        return step(rate)

    monkeypatch.setattr(run.student, "step", failing)
    with pytest.raises(RuntimeError, match="broken"):
        run.trainer.run()
    run.checkpoints.abandon()  # whoever called it says the error first
    assert not any(thread.name == THREAD_NAME for thread in threading.enumerate())
    assert run.checkpoints.latest_complete().step == 2, "that of step 4 was not completed"
    again = toy(max_steps=6, save=Every(steps=2))
    again.trainer.run()
    assert [path.name for path in again.checkpoints.folder.glob(".*")] == []


@pytest.mark.parametrize("attempt", range(1, 7))
def test_a_run_that_is_stopped_goes_on_the_same(toy, toy_in, tmp_path_factory, attempt):
    def start(make, **more):
        run = make(max_steps=6, save=Every(steps=1), validate=Every(steps=4), **more)
        run.policies.background_saves = True
        run.trainer.run()
        return run

    expected = start(lambda **options: toy_in(tmp_path_factory.mktemp("whole"), **options))
    first = start(toy, stop_at_attempt=attempt)
    assert first.checkpoints.latest_complete().step == attempt, "complete when the run has ended"
    second = start(toy)
    assert second.student.table.equal(expected.student.table)
    assert second.policies.keep_best.state_dict() == expected.policies.keep_best.state_dict()


def test_what_failed_in_the_background_is_saved_at_the_end(toy, monkeypatch):
    run = toy(max_steps=2, save=Every(steps=1))
    run.policies.background_saves = True
    commit, failures = run.checkpoints._disk.commit, [OSError("gone"), OSError("gone")]

    def failing(*arguments):
        if failures:
            raise failures.pop()
        return commit(*arguments)

    monkeypatch.setattr(run.checkpoints._disk, "commit", failing)
    run.trainer.run()
    assert not failures and run.checkpoints.latest_complete().step == 2
