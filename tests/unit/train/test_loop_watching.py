"""Sample replies and gradient norms in the loop: when they are made, where they go, and that training is the same."""

import torch

from distill_engine.train.balancing import LossTerms
from distill_engine.train.hooks import AtValidation
from distill_engine.train.policies import Every
from distill_engine.train.term_gradients import TermGradients


def watched(toy, **options):
    """A toy run with both."""
    run = toy(max_steps=7, validate=Every(steps=3), log=Every(steps=1), skipped={2}, **options)
    run.asked = []

    def samples(step, seconds):
        assert not run.student.training and run.sinks.phases[-1] == "validating"
        run.asked.append(step)
        return {"sample/length": float(step)}

    gradients = TermGradients(run.objective, run.module, 4, lambda: 1.0, run.ranks.device)
    run.hooks.each += [LossTerms(None, gradients, run.ranks), AtValidation(samples)]
    return run


def test_training_is_the_same_to_the_last_bit(toy_in, tmp_path):
    options = {"max_steps": 7, "validate": Every(steps=3), "log": Every(steps=1), "skipped": {2}}
    plain = toy_in(tmp_path / "plain", **options)
    plain.trainer.run()
    state = torch.get_rng_state()
    run = watched(lambda **given: toy_in(tmp_path / "watched", **given))
    run.trainer.run()
    assert torch.equal(plain.student.table, run.student.table)
    assert torch.equal(torch.get_rng_state(), state)
    own = ("train/gradient_", "valid/sample/")
    for kind in ("train", "valid"):
        kept = [
            (step, seconds, {name: v for name, v in values.items() if not name.startswith(own)})
            for step, seconds, values in run.records(kind)
        ]
        assert kept == plain.records(kind)


def test_samples_are_made_at_each_validation_and_are_part_of_its_record(toy):
    run = watched(toy)
    run.trainer.run()
    assert run.asked == [3, 6, 7]
    assert [(step, values["valid/sample/length"]) for step, _, values in run.records("valid")] == [
        (3, 3.0), (6, 6.0), (7, 7.0)
    ]  # fmt: skip


def test_gradient_norms_are_in_the_records_of_measured_steps(toy):
    run = watched(toy)
    run.trainer.run()
    held = [step for step, _, values in run.records("train") if "train/gradient_norm/task" in values]
    assert held == [1, 4], "attempts 0 and 4, the second attempt was skipped"
    assert run.student.backwards == 2 * run.student.attempts, "one backward pass per micro-batch, as always"


def test_a_resumed_run_measures_the_same_steps(toy_in, tmp_path):
    whole = watched(lambda **given: toy_in(tmp_path / "whole", **given))
    whole.trainer.run()
    first = watched(lambda **given: toy_in(tmp_path / "parts", **given), stop_at_attempt=4)
    first.trainer.run()
    second = watched(lambda **given: toy_in(tmp_path / "parts", **given))
    second.trainer.run()
    assert first.records("train") + second.records("train") == whole.records("train")
