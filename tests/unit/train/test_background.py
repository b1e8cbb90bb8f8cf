"""Checkpoints written while training goes on: what they hold, when they count, and what happens when writing fails."""

import errno
import threading
from pathlib import Path

import pytest

from distill_engine.train.checkpoint import CheckpointError, Checkpoints
from distill_engine.train.policies import Every


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
    return Checkpoints(tmp_path, OneRank(), identity={}, keep_last=2, warn=warnings.append)


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


@pytest.mark.parametrize("attempt", range(1, 7))
def test_a_run_that_is_stopped_goes_on_the_same(toy, toy_in, tmp_path_factory, attempt):
    def start(make, **more):
        run = make(max_steps=6, save=Every(steps=1), validate=Every(steps=4), **more)
        run.trainer.background_saves = True
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
    run.trainer.background_saves = True
    commit, failures = run.checkpoints._disk.commit, [OSError("gone"), OSError("gone")]

    def failing(*arguments):
        if failures:
            raise failures.pop()
        return commit(*arguments)

    monkeypatch.setattr(run.checkpoints._disk, "commit", failing)
    run.trainer.run()
    assert not failures and run.checkpoints.latest_complete().step == 2
