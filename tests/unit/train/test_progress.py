"""Counting steps, and limits."""

import json

import pytest

from distill_engine.train.config import StopSection
from distill_engine.train.progress import EndReason, Progress


def test_counts_of_applied_and_skipped_steps():
    progress = Progress()
    rows = []
    for applied in (True, False, False, True, False):
        progress.count_step(applied)
        rows.append((progress.steps, progress.skipped_steps, progress.skipped_in_a_row))
    assert rows == [(1, 0, 0), (1, 1, 1), (1, 2, 2), (2, 2, 0), (2, 3, 1)]


def test_state_goes_through_json():
    progress = Progress(steps=3, skipped_steps=2, skipped_in_a_row=1, seconds=4.5)
    other = Progress()
    other.load_state_dict(json.loads(json.dumps(progress.state_dict())))
    assert other == progress


@pytest.mark.parametrize(
    ("limits", "steps", "epoch", "seconds", "expected"),
    [
        ({}, 10**9, 1e9, 1e9, None),
        ({"max_steps": 5}, 4, 9, 9, None),
        ({"max_steps": 5}, 5, 0, 0, EndReason.MAX_STEPS),
        ({"max_epochs": 1.5}, 9, 1.49, 9, None),
        ({"max_epochs": 1.5}, 9, 1.5, 9, EndReason.MAX_EPOCHS),
        ({"max_seconds": 60}, 9, 9, 59.9, None),
        ({"max_seconds": 60}, 9, 9, 60.0, EndReason.MAX_SECONDS),
        ({"max_steps": 5, "max_epochs": 1.0, "max_seconds": 60}, 5, 1.0, 60, EndReason.MAX_STEPS),
    ],
)
def test_limits(limits, steps, epoch, seconds, expected):
    assert StopSection(**limits).reached(Progress(steps=steps, seconds=seconds), epoch) is expected
