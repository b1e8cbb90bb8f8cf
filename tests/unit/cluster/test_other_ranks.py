"""Ranks without a process group hear of each other: errors, deaths, absence."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from distill_engine.cluster import other_ranks
from distill_engine.cluster.exit_codes import may_pass
from distill_engine.cluster.facts import ClusterFacts
from distill_engine.cluster.other_ranks import OtherRanks, OthersFailedError, ranks_of_step

TEN_DAYS = 864_000.0  # longer than this process lives


def aged(file: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then))


def fail(folder: Path, rank: int, error: Exception) -> None:
    with pytest.raises(type(error)), OtherRanks(folder, rank, 3):
        raise error


def test_an_error_of_this_start_is_passed_on_with_whether_it_may_pass(tmp_path):
    fail(tmp_path, 2, ValueError("of an earlier start"))
    aged(tmp_path / "rank-2.failed", TEN_DAYS)
    with OtherRanks(tmp_path, 0, 3) as others:
        others.require([1, 2], "4 batches")
        fail(tmp_path, 1, OSError(28, "No space left"))
        with pytest.raises(OthersFailedError, match=r"4 batches .*: rank-1: OSError: .*No space left") as told:
            others.require([2], "4 batches")
        assert may_pass(told.value)
        fail(tmp_path, 2, ValueError("a bad row"))
        with pytest.raises(OthersFailedError, match="rank-2: ValueError: a bad row") as told:
            others.require([2], "4 batches")
        assert not may_pass(told.value), "one of them is not worth another try"
    with OtherRanks(tmp_path, 1, 3):  # the next start
        assert not (tmp_path / "rank-1.failed").exists()


def test_what_ranks_say_before_this_one_has_loaded_is_heard(tmp_path, monkeypatch):
    """They are a moment older than its own first sign of life, and younger than its process."""
    monkeypatch.setattr(other_ranks, "SILENT_SECONDS", 0.0)
    fail(tmp_path, 1, ValueError("a bad row"))
    aged(tmp_path / "rank-1.failed", 0.05)
    aged(tmp_path / "rank-1.alive", 0.05)
    with OtherRanks(tmp_path, 0, 3) as others:
        with pytest.raises(OthersFailedError, match="rank-1: ValueError: a bad row"):
            others.require([1, 2], "4 batches")
        (tmp_path / "rank-1.failed").unlink()
        with pytest.raises(OthersFailedError, match="rank 1 of 3 gave no sign of life"):
            others.require([1, 2], "4 batches")


def test_a_mark_is_whole_or_absent_and_the_error_stays_the_ranks_own(tmp_path, monkeypatch):
    with OtherRanks(tmp_path, 0, 3) as others:
        monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        fail(tmp_path, 1, ValueError("a bad row"))
        others.require([1], "4 batches")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["rank-0.alive", "rank-1.alive"]


def test_a_killed_rank_is_named_and_one_that_owes_nothing_may_be_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(other_ranks, "BEAT_SECONDS", 0.01)
    signs = tmp_path / "rank-2.alive"
    with OtherRanks(tmp_path, 0, 4) as others:
        read, write = os.pipe()
        rank = os.fork()
        if not rank:
            with OtherRanks(tmp_path, 2, 4):
                os.write(write, b"!")
                signal.pause()
        os.read(read, 1)
        first, deadline = signs.stat().st_mtime, time.monotonic() + 60
        while signs.stat().st_mtime == first:  # it goes on telling
            assert time.monotonic() < deadline
        others.require([1, 2, 3], "5 shards")
        os.kill(rank, signal.SIGKILL)
        os.waitpid(rank, 0)
        monkeypatch.setattr(other_ranks, "SILENT_SECONDS", 0.3)
        with pytest.raises(OthersFailedError, match=r"5 shards will not come: rank 2 of 4 gave no sign") as told:
            while time.monotonic() < deadline:
                others.require([1, 2, 3], "5 shards")
        assert may_pass(told.value)
        others.require([0, 1, 3], "5 shards")


def test_a_rank_that_never_comes_is_waited_for_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(other_ranks, "SILENT_SECONDS", -1.0)
    with OtherRanks(tmp_path, 1, 12) as others:
        (tmp_path / "rank-0.alive").touch()
        aged(tmp_path / "rank-0.alive", TEN_DAYS)  # of an earlier start
        others.require([0, 1, *range(3, 12)], "a batch")
        monkeypatch.setattr(other_ranks, "ABSENT_SECONDS", -1.0)
        with pytest.raises(
            OthersFailedError, match="ranks 0, 3, 4, 5, 6, 7, 8, 9 and 2 more of 12 did not come within"
        ):
            others.require([0, 1, *range(3, 12)], "a batch")


def test_a_step_of_srun_is_entered_before_anything_is_loaded(tmp_path):
    facts = ClusterFacts(1, 2, 1, 2, 0, 1, "here", 29500, "srun", "slurm-7.0.0")
    for other in (replace(facts, launcher="torchrun", job="given"), replace(facts, rank=0, world_size=1)):
        with ranks_of_step(tmp_path, other) as others:
            assert others is None and list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no such model"), ranks_of_step(tmp_path, facts):
        raise ValueError("no such model")
    heard = pytest.raises(OthersFailedError, match="rank-1: ValueError: no such model")
    with heard, ranks_of_step(tmp_path, replace(facts, rank=0)) as others:
        others.require([1], "a batch")
    with ranks_of_step(tmp_path, replace(facts, rank=0, job="slurm-7.0.1")) as others:
        others.require([1], "a batch")  # the next start


def test_one_process_alone_leaves_no_files(tmp_path):
    with OtherRanks(tmp_path / "folder", 0, 1) as others:
        others.require([0], "nothing")
    assert list((tmp_path / "folder").iterdir()) == []
