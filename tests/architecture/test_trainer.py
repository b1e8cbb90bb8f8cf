"""The training loop stays small: what is measured, balanced, sampled or published beside a step is a hook."""

import dataclasses
from pathlib import Path

from distill_engine.train import loop

MOST_FIELDS, MOST_LINES = 10, 200


def test_the_trainer_has_few_fields_and_a_short_file():
    assert len(dataclasses.fields(loop.Trainer)) <= MOST_FIELDS
    assert len(Path(loop.__file__).read_text(encoding="utf-8").splitlines()) <= MOST_LINES
