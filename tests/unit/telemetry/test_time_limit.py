"""A time limit into which not even one start fits is told once, as soon as it can be known."""

import json

import pytest

from distill_engine.telemetry.time_limit import FILE, TimeLimit


class Job:
    """A start of a job that began at 1000; its clock goes on by what its phases take."""

    def __init__(self, folder, limit: int) -> None:
        self.said: list[str] = []
        self.now = 1000.0
        job = {"SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": str(1000 + limit)} if limit else {}
        self.limit = TimeLimit(folder, job, self.said.append, lambda: self.now)

    def phase(self, name: str, seconds: float = 0.0) -> None:
        self.limit.phase(name)
        self.now += seconds

    def step(self, seconds: float) -> None:
        self.now += seconds
        self.limit.advance(1, None, None)


def one_start(job: Job) -> None:
    job.phase("building", 40)
    job.phase("training")
    for _ in range(3):
        job.step(5)
    job.phase("validating", 10)
    job.phase("training")
    job.phase("saving", 20)
    job.phase("training")


def test_what_does_not_fit_is_told_when_it_is_known_and_again_right_at_the_next_start(tmp_path):
    first = Job(tmp_path, 60)
    one_start(first)
    (said,) = first.said
    assert "the time limit of 60 s is too short" in said and "sbatch --time" in said
    assert "the start 45 s, a step 5 s, a validation 10 s" in said
    assert json.loads((tmp_path / FILE).read_text())["a checkpoint"] == 20.0
    second = Job(tmp_path, 60)
    assert len(second.said) == 1 and "a checkpoint 20 s" in second.said[0], "before anything is done"


def test_a_limit_that_suffices_is_not_talked_about(tmp_path):
    for _ in range(2):
        job = Job(tmp_path, 81)
        one_start(job)
        assert job.said == []


def test_the_longest_of_each_kind_counts(tmp_path):
    job = Job(tmp_path, 81)
    one_start(job)
    job.step(9)
    assert len(job.said) == 1 and "a step 9 s" in job.said[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a step": "x"}'])
def test_a_file_that_cannot_be_read_is_as_none(tmp_path, content):
    (tmp_path / "logs").mkdir()
    (tmp_path / FILE).write_text(content)
    job = Job(tmp_path, 81)
    one_start(job)
    assert job.said == []


def test_without_a_limit_nothing_is_said_or_written(tmp_path):
    job = Job(tmp_path, 0)
    one_start(job)
    assert job.said == [] and not (tmp_path / FILE).exists()
