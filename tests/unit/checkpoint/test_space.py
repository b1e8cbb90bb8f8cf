"""What a run keeps at most, beside what is there."""

import pytest

from distill_engine.checkpoint.retention import Retention
from distill_engine.checkpoint.space import Space


@pytest.mark.parametrize(
    ("keep", "max_steps", "present", "needed"),
    [
        (Retention(2), None, (0, 0), 3 * 20 + 2 * 5),
        (Retention(2), None, (2, 1), 20 + 5),
        (Retention(2), None, (9, 9), 20 + 5),
        (Retention(2, best=3), None, (0, 0), 6 * 20 + 2 * 5),
        (Retention(1, every=100), 1000, (0, 0), 12 * 20 + 2 * 5),
        (Retention(1, every=100), None, (0, 0), 3 * 20 + 2 * 5),
    ],
)
def test_needed(keep, max_steps, present, needed):
    assert Space(20, 5, keep, max_steps).needed(*present) == needed


def test_what_a_run_folder_holds_is_taken_off(tmp_path):
    space = Space(20, 5, Retention(2))
    assert space.least == 25 and space.needed_in(tmp_path / "not yet") == 70
    for name in ("checkpoints/step-00000004", "checkpoints/.tmp-step-00000008", "exports/step-00000004"):
        (tmp_path / name).mkdir(parents=True)
    assert space.needed_in(tmp_path) == 45
