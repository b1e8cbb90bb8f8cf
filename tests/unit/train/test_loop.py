"""The loop over toy parts: what happens when, in which order, and how a run ends."""

import math

import pytest

from distill_engine.checkpoint.manifest import CheckpointError, read_manifest
from distill_engine.telemetry.metrics import describe
from distill_engine.train.decisions import TrainingError
from distill_engine.train.learning_rate import LearningRate, Plateau
from distill_engine.train.policies import Every
from distill_engine.train.progress import EndReason

# ---- limits ----------------------------------------------------------------------------------------------------------


def test_max_steps_counts_applied_steps_only(toy):
    run = toy(max_steps=5, skipped={2, 4})
    assert run.trainer.run() is EndReason.MAX_STEPS
    assert run.student.attempts == 7 and len(run.student.learning_rates) == 5
    progress = run.trainer.progress
    assert (progress.steps, progress.skipped_steps, progress.skipped_in_a_row) == (5, 2, 0)
    assert run.ranks.agreed_steps[:7] == [1, 2, 3, 4, 5, 6, 7]  # ranks compare attempts


def test_max_epochs(toy):
    run = toy(max_epochs=1.5)
    assert run.trainer.run() is EndReason.MAX_EPOCHS
    assert run.batches.epoch >= 1.5 and run.student.attempts == 5  # 2 of 6 batches a step


def test_max_seconds_is_the_agreed_clock(toy):
    run = toy(max_seconds=3)
    assert run.trainer.run() is EndReason.MAX_SECONDS
    assert run.student.attempts == 3


def test_the_first_limit_ends_the_run(toy):
    assert toy(max_steps=100, max_seconds=2).trainer.run() is EndReason.MAX_SECONDS


# ---- one step --------------------------------------------------------------------------------------------------------


def test_a_step_is_one_backward_per_micro_batch_and_one_update(toy):
    run = toy(max_steps=3)
    run.trainer.run()
    assert run.student.backwards == 6 and run.student.attempts == 3
    assert run.teacher.asked == 6 + 1  # and once for the validation at the end


def test_learning_rate_follows_applied_steps(toy):
    run = toy(max_steps=6, warmup=4, skipped={2, 3})
    run.trainer.run()
    assert run.student.learning_rates == [run.policies.learning_rate.at(step) for step in range(6)]
    assert run.student.learning_rates == [0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5]


def test_training_learns_and_needs_no_teacher(toy):
    run = toy(max_steps=30, validate=Every(steps=10), teacher=False)
    run.trainer.run()
    ppl = [values["valid/ppl"] for _, _, values in run.records("valid")]
    assert ppl[0] < 29 and ppl == sorted(ppl, reverse=True)
    assert not [name for _, _, values in run.records("valid") for name in values if "prediction" in name]


# ---- int8 ------------------------------------------------------------------------------------------------------------


def test_validations_of_int8_are_compared_among_themselves(toy):
    """They begin behind its first step; patience waits for them, and the best before them is forgotten."""
    values = [1.0, 2.0, 2.0, 2.0, 3.0, 2.5, 2.6, 2.7]
    common = {"validate": Every(steps=2), "save_after_validation": False}
    run = toy(max_steps=20, validations=values, patience=2, quantized_from=8, **common)
    run.policies.learning_rate = LearningRate("reduce_on_plateau", 0.5, plateau=Plateau(patience=2))
    assert run.trainer.run() is EndReason.OUT_OF_PATIENCE and run.trainer.progress.steps == 16
    # after step 8 no step of int8 has been taken: that validation is the last of the plain student's
    assert [step for _, step in run.published] == [2, 10, 12] and run.policies.keep_best.best == 2.5
    rounds = [event for event in run.events if event in ("int8", "plain", "validate")]
    assert rounds == ["plain", "plain", "plain", "validate"] * 4 + ["int8", "int8", "int8", "validate"] * 4
    # 2.0 for the third time drops it; 3.0 would be the next bad one, had the best before it not been forgotten
    assert run.policies.learning_rate.state_dict() == {"level": 0.25, "plateau": {"best": 2.5, "bad_validations": 2}}


# ---- triggers --------------------------------------------------------------------------------------------------------


def test_what_happens_when(toy):
    run = toy(max_steps=7, log=Every(steps=2), validate=Every(steps=3), save=Every(steps=3))
    run.trainer.run()
    assert run.events == [
        "step 1", "step 2", "train record 2",
        # a validation logs what is pending, decides, publishes, and saves once
        "step 3", "train record 3", "validate", "valid record 3", "publish 3", "save",
        "step 4", "step 5", "train record 5",
        "step 6", "train record 6", "validate", "valid record 6", "publish 6", "save",
        # the end: the last step is validated too
        "step 7", "train record 7", "validate", "valid record 7", "publish 7", "save",
    ]  # fmt: skip
    assert run.sinks.phases[:2] == ["training", "validating"] and run.sinks.phases[-1] == "training"


def test_a_validation_at_the_last_step_is_not_repeated_nor_saved_twice(toy):
    run = toy(max_steps=4, validate=Every(steps=2))
    run.trainer.run()
    assert run.events.count("validate") == run.events.count("save") == 2


def test_saves_between_validations(toy):
    run = toy(max_steps=6, validate=Every(steps=4), save=Every(steps=2), save_after_validation=False)
    run.trainer.run()
    at = [n for n, event in enumerate(run.events) if event == "save"]
    assert [sum(e.startswith("step") for e in run.events[:n]) for n in at] == [2, 5, 6]
    # step 4 validated; the save that was due then comes with the next step that does not validate
    assert run.checkpoints.latest_complete().step == 6


def test_epochs_and_seconds_trigger_validations(toy):
    by_epochs = toy(max_steps=6, validate=Every(epochs=1))
    by_epochs.trainer.run()
    assert [step for step, _, _ in by_epochs.records("valid")] == [3, 6]


def test_the_time_until_the_next_validation_counts_from_the_end_of_this_one(toy):
    run = toy(max_steps=6, validate=Every(seconds=2), validation_seconds=10)
    run.trainer.run()  # a step takes a second of the agreed clock
    assert [step for step, _, _ in run.records("valid")] == [2, 4, 6]


def test_skipped_steps_trigger_nothing(toy):
    run = toy(max_steps=4, validate=Every(steps=2), log=Every(steps=1), skipped={3, 4})
    run.trainer.run()
    after_first_save = run.events[run.events.index("save") + 1 :]
    assert after_first_save[:3] == ["skip 3", "skip 4", "step 5"]
    assert [step for step, _, _ in run.records("valid")] == [2, 4]


def test_a_trigger_that_gets_due_at_a_skipped_step_waits_for_the_next_applied_one(toy):
    run = toy(max_steps=3, validate=Every(seconds=2), skipped={2, 3})
    run.trainer.run()
    assert run.events[: run.events.index("validate")] == ["step 1", "skip 2", "skip 3", "step 4", "train record 2"]


def test_every_logged_name_is_registered_and_values_are_those_of_the_step(toy):
    run = toy(max_steps=3, log=Every(steps=1), validate=Every(steps=3), skipped={2})
    run.trainer.run()
    for _, _, _, values in run.sinks.records:
        for name in values:
            describe(name)
    steps = [step for step, _, _ in run.records("train")]
    values = [values for _, _, values in run.records("train")]
    assert steps == [1, 2, 3]
    assert [v["train/skipped_steps"] for v in values] == [0, 1, 1]
    assert [v["train/examples"] for v in values] == [4, 12, 16]
    assert [v["train/epoch"] for v in values] == pytest.approx([2 / 6, 1, 8 / 6])
    first = values[0]
    assert (first["train/lr"], first["train/loss_scale"]) == (0.5, 4.0)
    # a table of zeros predicts every token alike
    assert first["train/term/task/raw"] == pytest.approx(math.log(29), rel=1e-6)
    assert first["train/ppl"] == pytest.approx(29, rel=1e-5)
    assert first["train/total"] == pytest.approx(
        first["train/term/task/raw"] + 2 * first["train/term/prediction/raw"], rel=1e-6
    )


def test_progress_shows_what_is_left(toy):
    run = toy(max_steps=4, validate=Every(steps=3))
    run.trainer.run()
    assert [step for step, _, _ in run.sinks.progress] == [1, 2, 3, 4]
    assert [text for _, text, _ in run.sinks.progress] == ["2 steps", "1 steps", "0 steps", "2 steps"]
    assert run.sinks.progress[0][2] == pytest.approx(3.0)  # three steps at a second each


# ---- decisions -------------------------------------------------------------------------------------------------------


def test_only_a_new_best_is_published_between_its_record_and_its_checkpoint(toy):
    run = toy(max_steps=4, validate=Every(steps=1), validations=[5.0, 6.0, 4.0, 4.0])
    run.trainer.run()
    assert [(values["ppl"], step) for values, step in run.published] == [(5.0, 1), (4.0, 3)]
    assert [values["best/ppl"] for _, _, values in run.records("valid")] == [5, 5, 4, 4]
    at = run.events.index("publish 3")
    assert (run.events[at - 1], run.events[at + 1]) == ("valid record 3", "save")


def test_out_of_patience_ends_the_run_for_good(toy):
    options = {"validate": Every(steps=1), "patience": 2, "max_steps": 50}
    run = toy(validations=[5.0, 6.0, 4.0, 4.5, 4.0, 1.0], **options)
    assert run.trainer.run() is EndReason.OUT_OF_PATIENCE
    assert run.trainer.progress.steps == 5
    again = toy(validations=[0.1], **options)
    assert again.trainer.run() is EndReason.OUT_OF_PATIENCE
    assert again.events == []  # not one step, validation or save


def test_target_reached(toy):
    run = toy(validate=Every(steps=1), stop_at=4.0, validations=[5.0, 3.9], max_steps=9)
    assert run.trainer.run() is EndReason.TARGET_REACHED
    assert run.trainer.progress.steps == 2


def test_a_validation_that_is_not_finite_is_no_best(toy):
    run = toy(validate=Every(steps=1), validations=[math.nan, 5.0, math.inf], max_steps=3)
    run.trainer.run()
    assert [step for _, step in run.published] == [2]


def test_decisions_follow_rank_0s_numbers(toy, monkeypatch):
    run = toy(validate=Every(steps=1), max_steps=1, validations=[5.0])
    monkeypatch.setattr(run.ranks, "broadcast", lambda values: values | {"ppl": 4.5})
    run.trainer.run()
    assert run.published[0][0]["ppl"] == 4.5 and run.policies.keep_best.best == 4.5


def test_a_metric_that_validation_does_not_give(toy):
    run = toy(validate=Every(steps=2), max_steps=5, metric="bleu")
    with pytest.raises(TrainingError, match=r"validation\.metric is 'bleu', which .*did not produce.*loss.*ppl.*toy/"):
        run.trainer.run()


# ---- trouble ---------------------------------------------------------------------------------------------------------


def test_too_many_skipped_steps_in_a_row(toy):
    run = toy(max_steps=50, max_skipped_steps=3, skipped={2, 3, 5, 6, 7})
    message = r"^3 optimizer steps in a row were skipped \(stop\.max_skipped_steps\).*step: 2, loss scale 4\. Lower"
    with pytest.raises(TrainingError, match=message):
        run.trainer.run()
    assert run.student.attempts == 7


def test_a_failing_save_does_not_stop_training_and_is_tried_again(toy):
    run = toy(max_steps=6, save=Every(steps=2), failing_saves=2)
    assert run.trainer.run() is EndReason.MAX_STEPS
    assert run.events.count("save") == 4  # two fail, step 6 succeeds, and again after the validation at the end
    assert run.checkpoints.latest_complete().step == 6
    assert [text for text in run.sinks.messages if "was not written" in text and "disk is full" in text]


def test_what_could_not_be_saved_is_saved_at_the_end(toy):
    run = toy(max_steps=2, validate=Every(steps=2), failing_saves=1)
    run.trainer.run()
    assert run.events[-2:] == ["save", "save"] and run.checkpoints.latest_complete().step == 2


def test_saves_that_fail_three_times_in_a_row_end_the_run(toy):
    run = toy(max_steps=50, save=Every(steps=2), failing_saves=3)
    with pytest.raises(CheckpointError, match="failure 3 of 3 in a row"):
        run.trainer.run()
    assert run.student.attempts == 6


def test_an_error_while_publishing_is_not_swallowed(toy):
    run = toy(max_steps=2, validate=Every(steps=1))

    def fail(_progress, _values):
        raise RuntimeError("no hub")

    run.publishing.new_best = fail
    with pytest.raises(RuntimeError, match="no hub"):
        run.trainer.run()


@pytest.mark.parametrize(("quantized_from", "best"), [(None, {"4": 1.0}), (4, {"6": 3.0})])
def test_a_checkpoint_knows_what_was_measured_at_its_own_step_only(toy, quantized_from, best):
    """Saves at every step, validations at every second: the best one stays besides the newest two, among those of int8
    where there are any."""
    often = {"validate": Every(steps=2), "save": Every(steps=1), "validations": [5.0, 1.0, 3.0, 4.0]}
    run = toy(max_steps=8, keep_best=1, quantized_from=quantized_from, **often)
    run.trainer.run()
    values = {path.name[-1]: read_manifest(path).value for path in run.checkpoints.folder.glob("step-*")}
    assert values == best | {"7": None, "8": 4.0}
