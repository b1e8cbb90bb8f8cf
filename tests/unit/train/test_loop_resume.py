"""A run that is stopped or killed at any step and started again is the run that never stopped."""

import pytest
import torch

from distill_engine.train.policies import Every
from distill_engine.train.progress import EndReason

LAST = 12
SKIPPED = {3, 4, 9}


def options(**changes):
    """Fresh triggers for every start."""
    common = {"max_steps": LAST, "skipped": SKIPPED, "warmup": 3}
    return common | {"validate": Every(steps=5), "log": Every(steps=1)} | changes


@pytest.fixture(scope="module")
def expected(toy_in, tmp_path_factory):
    """The run that was never stopped."""
    run = toy_in(tmp_path_factory.mktemp("whole"), **options())
    assert run.trainer.run() is EndReason.MAX_STEPS
    return run


@pytest.mark.parametrize("attempt", range(1, LAST + 3))
def test_stopped_by_request_after_any_step(expected, toy, attempt):
    first = toy(**options(stop_at_attempt=attempt))
    assert first.trainer.run() is EndReason.STOP_REQUESTED
    assert first.student.attempts == attempt and first.events[-1] == "save"
    second = toy(**options())
    assert second.trainer.run() is EndReason.MAX_STEPS
    same_run(expected, second)
    if attempt not in SKIPPED:  # else the skipped attempt has a record of its own, written by the stop
        assert first.records("train") + second.records("train") == expected.records("train")
    assert first.records("valid") + second.records("valid") == expected.records("valid")
    published = [(values["ppl"], step) for run in (first, second) for values, step in run.published]
    assert published == [(values["ppl"], step) for values, step in expected.published]
    assert [text for text in second.sinks.messages if "was skipped" not in text] == [
        f"resumed after step {first.trainer.progress.steps}; initial weights and other start options are not used"
    ]


def test_int8_begins_at_its_step_wherever_a_run_is_stopped(toy_in, tmp_path):
    """Skipped steps do not count, and the best is chosen anew by the first validation of int8, resumed or not."""

    def start(name, quantized_from=6, **changes):
        run = toy_in(
            tmp_path / name,
            **options(validate=Every(steps=3), quantized_from=quantized_from, skipped={4}, **changes),
            save_after_validation=False,
        )
        run.reason = run.trainer.run()
        return run

    def values(*runs, kind):
        return [(step, found) for run in runs for step, _, found in run.records(kind)]

    whole, plain = start("whole"), start("plain", None)
    same = [one == other for one, other in zip(values(whole, kind="train"), values(plain, kind="train"), strict=True)]
    assert same == [True] * 6 + [False] * 6, "another step than the seventh was the first of int8"
    assert values(whole, kind="valid")[:2] == values(plain, kind="valid")[:2]
    for attempt in (7, 8):  # the seventh attempt is the sixth step
        parts = start(f"parts-{attempt}", stop_at_attempt=attempt), start(f"parts-{attempt}")
        assert [part.reason for part in parts] == [EndReason.STOP_REQUESTED, EndReason.MAX_STEPS]
        assert [part.student.rounded for part in parts] == [attempt == 8, True]
        assert torch.equal(parts[1].student.table, whole.student.table)
        assert parts[1].policies.keep_best.best == whole.policies.keep_best.best
        for kind in ("train", "valid"):
            assert values(*parts, kind=kind) == values(whole, kind=kind)


def same_run(expected, resumed) -> None:
    assert torch.equal(expected.student.table, resumed.student.table)
    assert expected.student.attempts == resumed.student.attempts
    assert vars(expected.trainer.progress) == vars(resumed.trainer.progress)
    for policy in ("learning_rate", "keep_best", "early_stopping", "validate_when"):
        one, other = (getattr(run.policies, policy).state_dict() for run in (expected, resumed))
        assert one == other, policy


class Killed(BaseException):
    """Stands for the end of the process."""


VICTIMS = ["step 1", "train record 1", "skip 4", "step 7", "publish 5", "valid record 10", "step 14"]


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_at_any_moment_it_goes_on_from_the_newest_checkpoint(expected, toy, victim):
    first = toy(**options(save=Every(steps=2)))

    class Events(list):
        def append(self, event):
            super().append(event)
            if event == victim:
                raise Killed

    first.events = Events()
    with pytest.raises(Killed):
        first.trainer.run()
    second = toy(**options(save=Every(steps=2)))
    second.sinks.records = list(first.sinks.records)  # a file that both wrote to
    assert second.trainer.run() is EndReason.MAX_STEPS
    same_run(expected, second)
    for kind in ("train", "valid"):
        assert second.records(kind) == expected.records(kind)


@pytest.mark.parametrize("attempt", range(1, 10))
def test_patience_goes_on_counting_over_a_restart(toy, attempt):
    """Wherever it is interrupted, the run ends at the validation at which an undisturbed one does: the fifth."""
    values = [5.0, 4.0, 6.0, 4.0, 4.5]
    common = {"validate": Every(steps=2), "patience": 3}
    first = toy(**common, validations=values, stop_at_attempt=attempt)
    assert first.trainer.run() is EndReason.STOP_REQUESTED
    second = toy(**common, validations=values[attempt // 2 :])
    assert second.trainer.run() is EndReason.OUT_OF_PATIENCE
    assert second.trainer.progress.steps == 10 and second.policies.keep_best.best == 4.0


def test_the_logging_interval_is_written_before_a_stop(toy):
    """Steps since the last record are not lost: the interval ends early, the next one starts after it."""
    first = toy(max_steps=9, log=Every(steps=4), stop_at_attempt=6)
    first.trainer.run()
    second = toy(max_steps=9, log=Every(steps=4))
    second.trainer.run()
    steps = [step for run in (first, second) for step, _, _ in run.records("train")]
    assert steps == [4, 6, 9]


def test_a_stop_request_saves_but_does_not_validate(toy):
    run = toy(max_steps=9, validate=Every(steps=5), stop_at_attempt=3)
    assert run.trainer.run() is EndReason.STOP_REQUESTED
    assert "validate" not in run.events and run.checkpoints.latest_complete().step == 3


def test_a_stop_request_during_a_validation_step_lets_the_validation_finish(toy):
    run = toy(max_steps=9, validate=Every(steps=3), stop_at_attempt=3)
    assert run.trainer.run() is EndReason.STOP_REQUESTED
    assert run.events.count("validate") == run.events.count("save") == 1


def test_a_finished_run_started_again_does_nothing(toy):
    toy(max_steps=4, validate=Every(steps=2)).trainer.run()
    again = toy(max_steps=4, validate=Every(steps=2))
    assert again.trainer.run() is EndReason.MAX_STEPS
    assert again.events == []


def test_a_finished_run_can_be_prolonged(toy):
    toy(max_steps=4, log=Every(steps=1), validate=Every(steps=2)).trainer.run()
    longer = toy(max_steps=6, log=Every(steps=1), validate=Every(steps=2))
    longer.trainer.run()
    assert [step for step, _, _ in longer.records("train")] == [5, 6]


def test_another_ranks_wish_to_stop_is_obeyed(toy, monkeypatch):
    run = toy(max_steps=9)
    monkeypatch.setattr(run.ranks, "agree", lambda step, stop, seconds: (step >= 2, seconds))
    assert run.trainer.run() is EndReason.STOP_REQUESTED
    assert run.trainer.progress.steps == 2
